"""The step that answers are written with: one token of each sequence, over and over, in the same shapes.

Everything that such a step is told fits into one table of whole numbers [R, 2 + groups * pages]: token, position and, for one group of
layers after the other, pages of each sequence. So on CUDA a step is one copy to the device and one replay of a captured graph. Rows
and pages are rounded up to powers of two, so that few graphs serve all sizes; rows that only fill up write to a page that is nobody's.
On a CPU nothing is captured and nothing rounded up, but it is the same function of the same table.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.backends.base import Plan, Span
from herd.backends.torch.pages import Column, page_table

KEPT_GRAPHS = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """Logits [R, V], and of each row a verdict [R, 3], float64 (see `choosing.judge`). Overwritten by the next step."""

    logits_RV: Tensor
    verdict_R3: Tensor


Run = Callable[[Tensor], Outcome]
Capture = Callable[[Callable[[], Outcome]], Callable[[], Outcome]]
"""Makes of a function one that does the same again, reading and writing where it did the first time."""


class Decoder:
    """Runs decoding steps through `run`, a function of the table. `rounds` sizes up (for captures); `max_rows` is the largest step
    that it takes. `capturing` gives what captures, anew each time that all captures are forgotten."""

    def __init__(self, run: Run, device: torch.device, capturing: Callable[[], Capture], *, rounds: bool, max_rows: int) -> None:
        self._run = run
        self._device = device
        self._capturing = capturing
        self._capture = capturing()
        self._rounds = rounds
        self._max_rows = max_rows
        self._captured: OrderedDict[tuple[int, int], tuple[Tensor, Callable[[], Outcome]]] = OrderedDict()

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the tables; what a graph computes with is torch's to count."""
        return sum(table.nbytes for table, _ in self._captured.values())

    def takes(self, plan: Plan) -> bool:
        """Whether a plan is such a step: nothing but single tokens with logits, and nobody who watches."""
        is_single = all(len(span.tokens) == span.num_outputs == 1 for span in plan.spans)
        return is_single and plan.watch is None and self._rows(len(plan.spans)) <= self._max_rows

    def step(self, spans: Sequence[Span], scratch_page: int, groups: int = 1) -> Outcome:
        """One step, with pages of so many groups of layers. Its tensors have one row for each span."""
        table = self._table(spans, [Column(group, groups, scratch_page) for group in range(groups)])
        if not self._rounds:
            return self._run(table.to(self._device))
        held, replay = self._replay(table)
        held.copy_(table, non_blocking=True)
        outcome = replay()
        return Outcome(outcome.logits_RV[: len(spans)], outcome.verdict_R3[: len(spans)])

    def clear(self) -> None:
        """Forgets all captures: they name weights and pages by address."""
        self._captured.clear()
        self._capture = self._capturing()

    def _rows(self, count: int) -> int:
        return _power_of_two(count) if self._rounds else count

    def _table(self, spans: Sequence[Span], groups: Sequence[Column]) -> Tensor:
        pages = [page_table(spans, column) for column in groups]
        facts = torch.tensor([[span.tokens[0], span.start] for span in spans])
        if not self._rounds:
            return torch.cat([facts, *pages], dim=1)
        columns = _power_of_two(pages[0].shape[1])
        table = torch.zeros((self._rows(len(spans)), 2 + len(groups) * columns), dtype=torch.int64)
        table[: len(spans), :2] = facts
        for first, own in zip(range(2, table.shape[1], columns), pages, strict=True):
            table[: len(spans), first : first + own.shape[1]] = own
            table[len(spans) :, first] = groups[0].scratch_page
        return table.pin_memory() if self._device.type == "cuda" else table

    def _replay(self, table: Tensor) -> tuple[Tensor, Callable[[], Outcome]]:
        """The capture for a table of this shape."""
        shape = (table.shape[0], table.shape[1])
        if shape not in self._captured:
            while len(self._captured) >= KEPT_GRAPHS:
                self._captured.popitem(last=False)
            held = table.to(self._device, copy=True)
            self._captured[shape] = held, self._capture(lambda: self._run(held))
        self._captured.move_to_end(shape)
        return self._captured[shape]


def uncaptured() -> Capture:
    """Runs the function itself each time."""
    return lambda run: run


class CudaGraphs:
    """Captures functions as CUDA graphs that share one pool of memory, as only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        with torch.cuda.device(self._device):
            return self._captured(run)

    def _captured(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        # What libraries set up when first called must not fall into the capture.
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outcome = run()

        def replay() -> Outcome:
            graph.replay()
            return outcome

        return replay


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def is_compiling() -> bool:
    """Whether decoding steps are compiled before they are captured."""
    return os.environ.get("HERD_TORCH_COMPILE") == "1"


def is_capturing_together() -> bool:
    """Whether decoding steps with sums between processes in them are captured too, which nobody has seen working yet."""
    return os.environ.get("HERD_TORCH_CAPTURE") == "1"
