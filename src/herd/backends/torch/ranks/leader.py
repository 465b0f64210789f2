"""`Backend` of a model that several processes hold: the one that asked for it, and a process for each further GPU.

    plan --checked--> Run to the others --> everybody's forward, with sums in it --> logits, everywhere --> tokens drawn here

A forward in which one process fails cannot be made up for, as the others wait in it. So the whole is then lost: `lost` says why, all other
processes are ended, and every further step raises `EngineLost`. A server starts its engine again; others load the model again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch

from herd.backends.base import BackendOptions, MemoryUse, Plan, StepResult, check_adapter, check_weights
from herd.backends.torch.backend import TorchBackend
from herd.backends.torch.devices import find_device, kind_of
from herd.backends.torch.divided import Together
from herd.backends.torch.ranks.checks import check_model
from herd.backends.torch.ranks.frames import (
    AddAdapter,
    Allocate,
    Begin,
    Done,
    Frame,
    Here,
    ReadPage,
    RemoveAdapter,
    Replace,
    Run,
    WritePage,
    to_bytes,
)
from herd.backends.torch.ranks.group import WAIT_S, ProcessGroup
from herd.backends.torch.ranks.interrupts import uninterrupted
from herd.backends.torch.ranks.known import KnownPictures
from herd.backends.torch.ranks.reading import divided_leaf, drop_copied
from herd.backends.torch.ranks.starting import Rank, answers
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.divided import part_of, part_of_update
from herd.errors import EngineLost, HerdError, UsageError
from herd.models.architecture import architecture_of
from herd.models.division import is_whole, to_run
from herd.models.weights import Adapted, Matrix, Update

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOAD_S = 3600.0
"""Reading the weights may take so long."""
MOMENT_S = 1.0
"""When a sum fails because another process has ended, its end is known after so long."""


@final
class DividedBackend:
    """A model in torch on `count` devices: GPUs 0, 1, ... of this machine, or processors, to try it. `mmproj` and `adapter` as the model
    was opened with: the other processes open it themselves. `wait_s`: a process that another waits for so long counts as hung."""

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: BackendOptions,
        count: int,
        *,
        mmproj: str | None = None,
        adapter: str | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        cfg = checkpoint.config
        check_model(cfg, count)
        self._division = to_run(cfg, 0, count)
        self._specs = {spec.name: spec for spec in architecture_of(cfg).tensors(cfg)}
        self._adapters: set[str] = set()
        self._known = KnownPictures()
        self._wait_s, self._lost, self._is_closed = wait_s, "", False
        leaf = divided_leaf(checkpoint, self._division, adapter)
        self._meeting = Path(tempfile.mkdtemp(prefix="herd-"))
        self._ranks: list[Rank] = []
        try:
            mine, *theirs = (_options_of(options, index, count) for index in range(count))
            for index, each in enumerate(theirs, 1):
                begin = Begin(str(checkpoint.path.absolute()), mmproj, adapter, asdict(each), str(self._meeting), index, count, wait_s)
                self._ranks.append(Rank(begin, self._lose))
            self._check_devices(mine.device, self._answered(LOAD_S))
            self._group = self._met(mine.device)
            together = Together(self._division, self._group, self._announced)
            self._part = TorchBackend(cfg, leaf, mine, checkpoint.release_pages, together=together)
            drop_copied(checkpoint, self._division)
            self._answered(LOAD_S)
            self._leave_meeting()
        except BaseException:
            self._end()
            raise
        self.vocab_size, self.num_embeddings, self.groups = self._part.vocab_size, self._part.num_embeddings, self._part.groups
        self.num_pages = 0

    def _met(self, device: str) -> ProcessGroup:
        """The group, once all others are there. `EngineLost` if they do not find each other."""
        try:
            return ProcessGroup(find_device(device), self._meeting, 0, self._division.count, self._wait_s)
        except RuntimeError as problem:
            self._lose(f"The processes of this model do not find each other: {self._reason(problem)}")
            raise self._why(is_loading=True) from problem

    @property
    def lost(self) -> EngineLost | None:
        """Why it can never answer again; None while it can."""
        return EngineLost(self._lost) if self._lost else None

    @property
    def fingerprint(self) -> str:
        return f"{self._part.fingerprint} tensor-parallel-{self._division.count}"

    @property
    def process_ids(self) -> list[int]:
        """Of the other processes."""
        return [rank.process_id for rank in self._ranks]

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        self.num_pages = 0
        try:
            self._order(Allocate(num_pages, by_group), lambda: self._part.allocate(num_pages, by_group=by_group))
        except BaseException:
            if num_pages and not self._lost:
                self.allocate(0)
            raise
        self.num_pages = num_pages

    def page_bytes(self) -> int:
        """Of all processes together."""
        return self._part.page_bytes() * self._division.count

    def read_page(self, page: int) -> bytes:
        mine: list[bytes] = []
        theirs = self._order(ReadPage(page), lambda: mine.append(self._part.read_page(page)))
        return b"".join([*mine, *(each.contents.tobytes() for each in theirs)])

    def write_page(self, page: int, contents: memoryview) -> None:
        size = self._part.page_bytes()
        mine, *theirs = (contents[first : first + size] for first in range(0, len(contents), size))
        frames = [WritePage(page, np.frombuffer(each, np.uint8)) for each in theirs]
        self._orders([_in_one(frame) for frame in frames], lambda: self._part.write_page(page, mine))

    def step(self, plan: Plan) -> StepResult:
        self._raise_if_lost()
        _check_watch(plan)
        try:
            result = self._part.step(plan)
        finally:
            # What a device makes of a sum that was given up may look like any number.
            self._raise_if_lost()
        return result

    def value_names(self) -> tuple[str, ...]:
        """Those that are whole in each process."""
        return tuple(filter(is_whole, self._part.value_names()))

    def classify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self._part.classify(tokens)

    def update(self, weights: Mapping[str, Matrix]) -> None:
        """One weight after another: each goes over as a whole, and each process takes its part. Where one of them has no room for its part
        the model is lost: the others have the new one already."""
        check_weights(weights, self._specs)
        if self._adapters:
            raise UsageError("Weights cannot be replaced while adapters are there; remove them first.")
        for name, leaf in weights.items():
            if isinstance(leaf, Adapted):
                raise UsageError(f"The new {name} carries an adapter; merge it first.")
            part = part_of(name, leaf, self._division)
            try:
                self._order(Replace(name, leaf), partial(self._part.update, {name: part}))
            except BaseException as problem:
                self._lose(f"The new {name} is in some processes only: {problem}")
                raise EngineLost(self._lost) from problem

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        check_adapter(name, self._adapters, updates, self._specs)
        parts = {at: part_of_update(at, each, self._division) for at, each in updates.items()}
        try:
            self._order(AddAdapter(name, updates), lambda: self._part.add_adapter(name, parts))
        except BaseException:
            self._forget_adapter(name)
            raise
        self._adapters.add(name)

    def remove_adapter(self, name: str) -> None:
        self._order(RemoveAdapter(name), lambda: self._part.remove_adapter(name))
        self._adapters.discard(name)

    def memory(self) -> MemoryUse:
        """Of this process' device; what the others hold, as they told it last, stands under `other`, device by device."""
        mine = self._part.memory()
        other = dict(mine.other)
        for rank in self._ranks:
            held = rank.memory
            uses = {"weights": held.weights, "cache": held.cache, "buffers": held.buffers, **held.other}
            other |= {f"{use} on device {rank.index}": num_bytes for use, num_bytes in uses.items() if num_bytes}
        return replace(mine, other=other)

    def close(self) -> None:
        if not self._is_closed:
            self._end()
            self._part.close()

    # the others

    @contextmanager
    def _announced(self, plan: Plan, is_decoding: bool) -> Iterator[None]:
        """Around each forward: the others begin it too. An interrupt waits until it is through: they could not be told."""
        self._raise_if_lost()
        with uninterrupted():
            try:
                pieces = _in_one(Run(self._known.told(plan), is_decoding))
                for rank in self._ranks:
                    rank.send((pieces,))
                yield
            except BaseException as problem:
                self._lose(self._reason(problem))
                raise EngineLost(self._lost) from problem

    def _order(self, frame: Frame, mine: Callable[[], None]) -> list[Done]:
        """What the others answer to an order that `mine` carries out here. The first problem is raised when all have answered."""
        return self._orders([_in_one(frame)] * len(self._ranks), mine)

    def _orders(self, pieces: Sequence[bytes], mine: Callable[[], None]) -> list[Done]:
        """The same, with an order for each."""
        self._raise_if_lost()
        with uninterrupted():
            try:
                for rank, each in zip(self._ranks, pieces, strict=True):
                    rank.send((each,))
            except EngineLost as problem:
                self._lose(str(problem))
                raise EngineLost(self._lost) from problem
            try:
                mine()
            except BaseException:
                self._drop_answers()
                raise
            return [each for each in self._answered() if isinstance(each, Done)]

    def _answered(self, wait_s: float | None = None) -> list[Here | Done]:
        """One answer of each. wait_s: while they load."""
        try:
            return answers(self._ranks, wait_s or self._wait_s)
        except EngineLost as problem:
            self._lose(str(problem))
            raise self._why(is_loading=wait_s is not None) from problem

    def _why(self, *, is_loading: bool) -> HerdError:
        """What to raise: of processes that are gone the first is told, as the others were ended because of it. While they load, what one of
        them says is the whole story."""
        said = next((rank.problem.error for rank in self._ranks if rank.problem is not None), None)
        return said if is_loading and said is not None else EngineLost(self._lost)

    def _drop_answers(self) -> None:
        """Hears the others out, whose answer changes nothing."""
        try:
            self._answered()
        except Exception:
            if self._lost:
                raise

    def _forget_adapter(self, name: str) -> None:
        """Takes an adapter back that only some have."""
        if not self._lost:
            with suppress(UsageError):  # whoever has it not says so
                self._order(RemoveAdapter(name), lambda: self._part.remove_adapter(name))

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise EngineLost(self._lost)

    def _reason(self, problem: BaseException) -> str:
        """Why a forward failed: most often that another process has ended, of which a sum tells nothing."""
        until = time.monotonic() + MOMENT_S
        while time.monotonic() < until:
            if self._lost:
                return self._lost
            time.sleep(0.01)
        return f"A step of this model failed in process 1 of {self._division.count}: {problem}"

    def _lose(self, why: str) -> None:
        """Gives everything up; the first reason counts. From any thread."""
        if self._lost or self._is_closed:
            return
        self._lost = f"{why.rstrip('.')}. Load the model again."
        for rank in self._ranks:
            rank.kill()
        if hasattr(self, "_group"):
            self._group.abort()

    def _check_devices(self, device: str, here: Sequence[Here | Done]) -> None:
        """`UsageError` for devices of different kinds: they would round differently, and then choose different experts."""
        mine = kind_of(find_device(device))
        for rank, other in zip(self._ranks, here, strict=True):
            if isinstance(other, Here) and other.device != mine:
                raise UsageError(
                    f"tensor_parallel needs devices of one kind; process 1 has {mine}, process {rank.index + 1} {other.device}."
                )

    def _end(self) -> None:
        self._is_closed = True
        for rank in self._ranks:
            rank.dismiss()
        for rank in self._ranks:
            rank.close()
        if hasattr(self, "_group"):
            self._group.close()
        self._leave_meeting()

    def _leave_meeting(self) -> None:
        """Nobody looks there any more once all have met."""
        shutil.rmtree(self._meeting, ignore_errors=True)


def _in_one(frame: Frame) -> bytes:
    return b"".join(to_bytes(frame))


def _options_of(options: BackendOptions, index: int, count: int) -> BackendOptions:
    """What one of the processes computes with: a GPU of its own, or its share of the processors."""
    if options.device != "cpu":
        return replace(options, device=f"cuda:{index}")
    return replace(options, threads=options.threads or max(1, torch.get_num_threads() // count))


def _check_watch(plan: Plan) -> None:
    """`UsageError` for what no process has the whole of."""
    watch = plan.watch
    if watch is None:
        return
    if watch.patch:
        raise UsageError("Values cannot be replaced in a model that several processes hold; load it without tensor_parallel.")
    partial = sorted(name for name in watch.read if not is_whole(name))
    if partial:
        raise UsageError(f"No process has the whole of {partial[0]}, as several hold this model; load it without tensor_parallel.")
