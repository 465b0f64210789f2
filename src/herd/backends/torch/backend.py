"""`Backend` in torch: checks a plan, runs the model function as it stands on the device, chooses tokens.

Options: `device` "cpu", "cuda" or "cuda:1". `dtype` is what is computed in and what the cache holds; None: what plain matrices are
stored in, and for block-quantised models float32 on a CPU and bfloat16 on CUDA. Quantised weights lie on the device as stored and
are multiplied exactly, so `activations` is "float32". `threads` are torch's, of the whole process; a GPU takes none. Closeness is
promised, not equal bits, whatever else is in a step.

On CUDA decoding steps are captured as CUDA graphs (`decoding.py`). With the environment variable HERD_TORCH_COMPILE=1 they are
compiled first, which takes a minute for each new shape. Where several processes hold the model they are captured with HERD_TORCH_CAPTURE=1
only: NCCL can be captured, but it was not tried here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.backends.base import (
    PAGE_TOKENS,
    BackendOptions,
    Encoded,
    MemoryUse,
    Picture,
    Plan,
    Span,
    StepResult,
    Watch,
    by_adapter,
    check_adapter,
    check_kv_cache,
    check_plan,
    check_tokens,
    check_weights,
    unknown_adapter,
)
from herd.backends.torch.attention import is_fused
from herd.backends.torch.choosing import choose, judge
from herd.backends.torch.decoding import CudaGraphs, Decoder, Outcome, is_capturing_together, is_compiling, uncaptured
from herd.backends.torch.devices import compute_dtype, device_name, find_device, use_threads
from herd.backends.torch.divided import DividedOps, Together
from herd.backends.torch.finite import not_finite
from herd.backends.torch.ops import TorchOps, as_numpy
from herd.backends.torch.pages import Layout, Pages, Singles, check_cache, layouts_of
from herd.backends.torch.picture_ops import TorchPictureOps
from herd.backends.torch.pictures import Memory, memories, overlays
from herd.backends.torch.tensors import Tensors, parts
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.architecture import Config, architecture_of, classifying, num_embeddings, seeing
from herd.models.cache_groups import cache_groups, one_group
from herd.models.ops import PictureStep, Step
from herd.models.weights import Adapted, Kind, Leaf, Matrix, Update
from herd.version import __version__

CPU_KEEP_BYTES = 4 << 30
MAX_DECODED_ROWS = 256
# Matrices of experts are gathered for each row; beyond this, going through the experts one by one moves less.
MAX_DECODED_ROWS_WITH_EXPERTS = 8
# After so many bytes were brought to the device the pages of the file that they came from are given back.
_RELEASE_BYTES = 256 << 20
_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class TorchBackend:
    """A model in torch. `release` gives back pages of the file that were copied. `keep_bytes` bounds what decoded quantised
    matrices may take; None: 4 GiB on a CPU, on a GPU half of what weights and cache leave free. `together`: this is one of several
    processes that hold the model, and every weight and update it is given is its part of it."""

    name = "torch"

    def __init__(
        self,
        cfg: Config,
        leaf: Leaf,
        options: BackendOptions,
        release: Callable[[], None] = lambda: None,
        *,
        keep_bytes: int | None = None,
        together: Together | None = None,
    ) -> None:
        if options.activations != "float32":
            raise UsageError(f'activations is {options.activations!r}; the torch backend multiplies exact values: take "float32".')
        check_kv_cache(options.kv_cache)
        self._device = find_device(options.device)
        use_threads(options.threads, self._device)
        self._model, self._seeing = architecture_of(cfg), seeing(cfg)
        self._crossing = 0 if self._seeing is None else self._seeing.num_crossing(cfg)
        self._together = together
        self._cfg = cfg if together is None else together.division.config(cfg)
        specs = self._model.tensors(cfg) if together is None else map(together.division.spec, self._model.tensors(cfg))
        self._specs = {spec.name: spec for spec in specs}
        self._leaves: dict[str, Matrix] = {name: leaf(name) for name in self._specs}
        self._weights = self._tree(self._leaves)
        self._adapters: dict[str, tuple[Any, Mapping[str, Adapted]]] = {}
        self._dtype = compute_dtype(options.dtype, self._leaves.values(), self._device)
        check_cache(options.kv_cache, self._dtype)
        self._keep_bytes = keep_bytes
        self._tensors = self._load(release)
        self._ops, self._picture_ops = self._make_ops(), TorchPictureOps(self._tensors)
        self._decoding_ops = self._make_ops(is_static=self._device.type == "cuda")
        self._encoded = Encoded(self.encode)
        shapes = self._model.caches(self._cfg)
        self.groups = cache_groups(shapes, PAGE_TOKENS)
        self._pages = Pages(shapes, self._dtype, self._device)
        self._judged_forward: Callable[..., tuple[Tensor, Tensor]] = self._judged
        self._decoder = self._make_decoder()
        self._is_closed = False
        self.vocab_size, self.num_embeddings = cfg.vocab_size, num_embeddings(cfg)
        self.num_pages = 0

    @staticmethod
    def check_device(name: str) -> None:
        """`UsageError` for a device that is not known or not here; before anything is opened."""
        find_device(name)

    @property
    def fingerprint(self) -> str:
        formats = "+".join(sorted({part.dtype.name for leaf in self._leaves.values() for part in parts(leaf)}))
        attention = "fused" if is_fused(self._device, self._dtype) else "plain"
        compiled = " compiled" if is_compiling() and self._device.type == "cuda" else ""
        dtype = str(self._dtype).removeprefix("torch.")
        where = f"{device_name(self._device)} {dtype} attention-{attention}{compiled} weights-{formats}"
        return f"torch-{torch.__version__} {where} herd-{__version__}"

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        assert num_pages >= 0
        self.num_pages = 0
        self._decoder.clear()
        groups = self.groups if by_group else one_group(len(self.groups.group_of_layer()), PAGE_TOKENS)
        try:
            self._pages.allocate(num_pages, groups)
        except (*_OUT_OF_MEMORY, RuntimeError, ValueError) as problem:
            self._pages.allocate(0, groups)
            raise CapacityError(
                f"{num_pages} cache pages of {PAGE_TOKENS} tokens take {num_pages * self.page_bytes() // groups.count} bytes and "
                f"{device_name(self._device)} refused them. Ask for a shorter context or fewer sequences at once."
            ) from problem
        self._tensors.keep_bytes = self._bytes_to_keep()
        self.num_pages = num_pages

    def page_bytes(self) -> int:
        return self._pages.page_bytes

    def read_page(self, page: int) -> bytes:
        return self._pages.read(page)

    @torch.no_grad()
    def write_page(self, page: int, contents: memoryview) -> None:
        self._pages.write(page, contents)

    @torch.no_grad()
    def step(self, plan: Plan) -> StepResult:
        self._check(plan)
        values = self._ops.begin(plan.watch)
        try:
            outcome = self._run(plan)
            verdicts: list[list[float]] = outcome.verdict_R3.tolist()
        except _OUT_OF_MEMORY as problem:
            raise CapacityError(
                f"{device_name(self._device)} has no memory left for a step of {plan.num_tokens} tokens. Ask for a shorter context."
            ) from problem
        finally:
            self._ops.begin(None)
        if not all(is_finite for is_finite, _, _ in verdicts):
            raise FileProblem(not_finite(plan, lambda alone: self._run(alone).logits_RV))
        choices = choose(plan, outcome.logits_RV, verdicts)
        return StepResult(choices, as_numpy(outcome.logits_RV) if plan.want_logits else None, values)

    @torch.no_grad()
    def logits(self, plan: Plan) -> NDArray[np.floating[Any]]:
        """One forward without draws: the wanted rows [R, V] in the type computed in (those of 16 bits as float32)."""
        self._check(plan)
        found: NDArray[np.floating[Any]] = self._run(plan).logits_RV.to(self._tensors.wide).cpu().numpy()
        return found

    @torch.no_grad()
    def value_names(self) -> tuple[str, ...]:
        """Found by running one token through the page that is nobody's. A classifier has none."""
        if classifying(self._cfg) is not None:
            return ()
        self._ops.names = []
        try:
            self._run(Plan((Span(0, (0,), (self._pages.scratch_page,) * self._pages.groups.count, 1),), watch=Watch()))
            return tuple(self._ops.names)
        finally:
            self._ops.names = None

    @torch.no_grad()
    def classify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        classifier = classifying(self._cfg)
        assert classifier is not None, "only for classifiers"
        check_tokens(tokens, self.num_embeddings)
        return as_numpy(classifier.classify(self._weights, self._cfg, self._picture_ops, tokens)[0])

    @torch.no_grad()
    def encode(self, picture: Picture) -> list[Tensor]:
        """A picture through the model's encoder: the tensors that its `encode` gives."""
        assert self._seeing is not None, "pictures only for models that see"
        tiles, _, height, width = picture.pixels.shape
        pixels = torch.from_numpy(np.ascontiguousarray(picture.pixels)).to(self._device, self._dtype)
        step = PictureStep(self._picture_ops, pixels, tiles, height, width, picture.rows, picture.columns)
        return list(self._seeing.encode(self._weights, self._cfg, step))

    def update(self, weights: Mapping[str, Matrix]) -> None:
        check_weights(weights, self._specs)
        if self._adapters:
            raise UsageError("Weights cannot be replaced while adapters are there; remove them first.")
        self._decoder.clear()
        self._encoded.clear()
        for name, leaf in weights.items():
            self._tensors.forget(self._leaves[name])
            self._leaves[name] = leaf
        try:
            for leaf in self._leaves.values():
                self._tensors.place(leaf)
        except _OUT_OF_MEMORY as problem:
            raise CapacityError(_NO_MEMORY.format(device_name(self._device))) from problem
        self._weights = self._tree(self._leaves)

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        check_adapter(name, self._adapters, updates, self._specs)
        adapted = {at: update.over(self._leaves[at], at) for at, update in updates.items()}
        try:
            for leaf in adapted.values():
                self._tensors.place(leaf)
        except _OUT_OF_MEMORY as problem:
            self._forget(adapted.values())
            raise CapacityError(_NO_MEMORY.format(device_name(self._device))) from problem
        self._adapters[name] = self._tree(self._leaves | adapted), adapted

    def remove_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise unknown_adapter(name, self._adapters)
        self._forget(self._adapters.pop(name)[1].values())

    def _forget(self, adapted: Iterable[Adapted]) -> None:
        """Gives back what the device holds of adapters; not of the matrices that they are over."""
        for leaf in adapted:
            self._tensors.forget(leaf.down)
            self._tensors.forget(leaf.up)

    def memory(self) -> MemoryUse:
        """`weights` counts the stored bytes (a mapped file's too) and what is kept decoded; a step's own tensors come and go."""
        decoded = self._tensors.decoded_bytes
        other = {"converted weights": decoded, "pictures": self._encoded.num_bytes}
        if self._device.type == "cuda":
            other["reserved on the device, all told"] = torch.cuda.memory_reserved(self._device)
        page = self.page_bytes() // self._pages.groups.count
        scratch = 0 if self._is_closed else page
        buffers = scratch + self._decoder.buffer_bytes
        return MemoryUse(self._tensors.stored_bytes + decoded, self.num_pages * page, buffers, other)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.allocate(0)
            self._tensors.clear()
            self._encoded.clear()
            self._leaves.clear()
            self._adapters.clear()
            del self._weights
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _bytes_to_keep(self) -> int:
        """What decoded matrices may take."""
        if self._keep_bytes is not None:
            return self._keep_bytes
        if self._device.type != "cuda":
            return CPU_KEEP_BYTES
        return self._tensors.decoded_bytes + torch.cuda.mem_get_info(self._device)[0] // 2

    def _load(self, release: Callable[[], None]) -> Tensors:
        """Brings all weights to the device."""
        tensors = Tensors(self._device, self._dtype)
        since_release = 0
        try:
            for leaf in self._leaves.values():
                tensors.place(leaf)
                since_release += leaf.num_bytes
                if since_release >= _RELEASE_BYTES and self._device.type != "cpu":
                    release()
                    since_release = 0
        except _OUT_OF_MEMORY as problem:
            raise CapacityError(_NO_MEMORY.format(device_name(self._device))) from problem
        if self._device.type != "cpu":
            release()
        return tensors

    def _tree(self, leaves: Mapping[str, Matrix]) -> Any:
        """The weights as the model's function reads them."""
        if self._together is not None:
            self._together.bind(leaves.items())
        return self._model.weights(self._cfg, leaves.__getitem__)

    def _make_ops(self, *, is_static: bool = False) -> TorchOps:
        if self._together is None:
            return TorchOps(self._tensors, is_static=is_static)
        return DividedOps(self._tensors, self._together, is_static=is_static)

    def _make_decoder(self) -> Decoder:
        has_experts = any(spec.kind is Kind.EXPERTS for spec in self._specs.values())
        most = MAX_DECODED_ROWS_WITH_EXPERTS if has_experts else MAX_DECODED_ROWS
        if self._device.type != "cuda" or (self._together is not None and not is_capturing_together()):
            return Decoder(self._decode, self._device, uncaptured, rounds=False, max_rows=MAX_DECODED_ROWS)
        if is_compiling() and self._together is None:
            self._judged_forward = torch.compile(self._judged, dynamic=False)
        return Decoder(self._decode, self._device, lambda: CudaGraphs(self._device), rounds=True, max_rows=most)

    def _run(self, plan: Plan) -> Outcome:
        is_decoding = self._decoder.takes(plan) and not any(span.adapter is not None or self._looks(span) for span in plan.spans)
        if self._together is None:
            return self.follow(plan, is_decoding)
        with self._together.announced(plan, is_decoding):
            return self.follow(plan, is_decoding)

    @torch.no_grad()
    def follow(self, plan: Plan, is_decoding: bool) -> Outcome:
        """One forward of a plan that was checked, as a decoding step or not. Of several processes each calls it at the same time."""
        if is_decoding:
            return self._decoder.step(plan.spans, self._pages.scratch_page, self._pages.groups.count)
        logits_RV = self._forward(plan)
        return Outcome(logits_RV, judge(logits_RV))

    def _looks(self, span: Span) -> bool:
        """Whether a span of one token needs its sequence's pictures."""
        return bool(span.pictures) and (self._crossing > 0 or any(span.start in placed.positions for placed in span.pictures))

    def _decode(self, table: Tensor) -> Outcome:
        """One token of each sequence, without pictures; the columns of the table are its id, its position and the pages."""
        singles = [Singles(None, table[:, 1], pages) for pages in table[:, 2:].chunk(self._pages.groups.count, dim=1)]
        layouts = [Layout(each.slots(table[:, 1:2])[:, 0], (), each) for each in singles]
        step = Step(
            ops=self._decoding_ops,
            tokens_T=table[:, 0],
            positions_T=table[:, 1],
            outputs_R=None,
            cache=self._pages.layers(layouts),
            memory=[Memory(())] * self._crossing,
            seen=torch.zeros_like(table[:, 0], dtype=torch.bool) if self._crossing else None,
        )
        return Outcome(*self._judged_forward(self._weights, self._cfg, step))

    def _judged(self, weights: Any, cfg: Config, step: Step) -> tuple[Tensor, Tensor]:
        """The part of a decoding step that is worth compiling."""
        logits_RV: Tensor = self._model.forward(weights, cfg, step)
        return logits_RV, judge(logits_RV)

    def _forward(self, plan: Plan) -> Tensor:
        """Every adapter's spans by themselves, if there are any."""
        groups = by_adapter(plan)
        if len(groups) == 1:
            return self._forward_with(plan, next(iter(groups)))
        rows: dict[int, Tensor] = {}
        for adapter, indices in groups.items():
            part = replace(plan, spans=tuple(plan.spans[index] for index in indices))
            made, end = self._forward_with(part, adapter), 0
            for index, span in zip(indices, part.spans, strict=True):
                rows[index] = made[end : end + span.num_outputs]
                end += span.num_outputs
        return torch.cat([rows[index] for index in range(len(plan.spans))])

    def _forward_with(self, plan: Plan, adapter: str | None) -> Tensor:
        layouts = layouts_of(plan, self._pages, self._device, one_by_one=plan.watch is not None)
        positions = [np.arange(span.start, span.start + len(span.tokens)) for span in plan.spans]
        ends = np.cumsum([len(span.tokens) for span in plan.spans])
        outputs = [np.arange(end - span.num_outputs, end) for span, end in zip(plan.spans, ends, strict=True)]
        crossing = self._crossing
        memory, seen = memories(plan, self._encoded, crossing, self._device) if crossing else ((), None)
        step = Step(
            ops=self._ops,
            tokens_T=torch.tensor([token for span in plan.spans for token in span.tokens], device=self._device),
            positions_T=torch.from_numpy(np.concatenate(positions)).to(self._device),
            outputs_R=torch.from_numpy(np.concatenate(outputs)).to(self._device),
            cache=self._pages.layers(layouts),
            pictures=None if crossing or self._seeing is None else overlays(plan, self._encoded, self._device),
            memory=memory,
            seen=seen,
        )
        weights = self._weights if adapter is None else self._adapters[adapter][0]
        logits_RV: Tensor = self._model.forward(weights, self._cfg, step)
        return logits_RV

    def _check(self, plan: Plan) -> None:
        """Everything that can be wrong with a plan, before anything is written."""
        if self._is_closed:
            raise UsageError("This model has been closed; load it again.")
        check_plan(plan, self._cfg, self.num_embeddings, self.num_pages, self._adapters, self._pages.groups, sees=self._seeing is not None)


_NO_MEMORY = "{} has no memory for the weights. Close other programs, or load a smaller or more quantised model."
