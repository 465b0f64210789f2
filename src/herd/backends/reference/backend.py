"""`Backend` on the numpy operations: checks a plan, runs the model function as it stands, chooses tokens.

Options: `dtype` None or "float32" computes in float32, "float64" in float64 (the oracle of all tests). "bfloat16" and
"float16" round plain matrices and what they are multiplied with to that format and sum in float32: the plain
implementation of the hardware's 16-bit dot products. `activations="int8"` is that of the CPU's path for block-quantised
models: int8 activations where a matrix is quantised, and a float16 cache; "float32" multiplies exact values and caches what
it computed. `kv_cache` other than "auto" says how keys and values are kept. Threads are numpy's own affair, so `threads` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import (
    PAGE_TOKENS,
    BackendOptions,
    Encoded,
    MemoryUse,
    Picture,
    Plan,
    Span,
    StepResult,
    by_adapter,
    check_adapter,
    check_plan,
    check_processor,
    check_tokens,
    check_weights,
    unknown_adapter,
)
from herd.backends.reference.arrays import KEEP_BYTES, Arrays, Floats
from herd.backends.reference.memory import memories, overlays
from herd.backends.reference.ops import NumpyOps
from herd.backends.reference.pages import Pages, rows_of
from herd.backends.reference.picture_ops import NumpyPictureOps
from herd.dtypes import BF16, F16, DType
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.architecture import Config, architecture_of, classifying, num_embeddings, seeing
from herd.models.cache_groups import cache_groups, one_group
from herd.models.ops import PictureStep, Step
from herd.models.weights import Adapted, Blocks, Leaf, Matrix, Update

if TYPE_CHECKING:
    from herd.sampling.draw import Choice, Draw

_COMPUTE: Mapping[str | None, tuple[type[np.floating[Any]], DType | None]] = {
    None: (np.float32, None),
    "float32": (np.float32, None),
    "float64": (np.float64, None),
    "bfloat16": (np.float32, BF16),
    "float16": (np.float32, F16),
}


class ReferenceBackend:
    """A model in numpy. Slow and exact; promises closeness, not equal bits, whatever else is in the step.

    `keep_bytes` bounds what converted weights may take (see `arrays.py`).
    """

    name = "reference"

    def __init__(self, cfg: Config, leaf: Leaf, options: BackendOptions, *, keep_bytes: int = KEEP_BYTES) -> None:
        _check_options(options)
        compute, self._plain_dtype = _COMPUTE[options.dtype]
        self._dtype = np.dtype(compute)
        self._cfg = cfg
        self._options = options
        self._model, self._seeing = architecture_of(cfg), seeing(cfg)
        self._leaves: dict[str, Matrix] = {spec.name: leaf(spec.name) for spec in self._model.tensors(cfg)}
        self._weights = self._model.weights(cfg, self._leaves.__getitem__)
        self._arrays = Arrays(self._dtype, self._plain_dtype, keep_bytes)
        self._adapters: dict[str, Any] = {}
        self._ops = NumpyOps(self._arrays, self._dtype, options.activations == "int8", self._plain_dtype)
        self._picture_ops = NumpyPictureOps(self._arrays, self._dtype, options.activations == "int8", self._plain_dtype)
        self._encoded = Encoded(self.encode)
        is_int8 = options.activations == "int8" and any(isinstance(part, Blocks) for leaf in self._leaves.values() for part in _parts(leaf))
        self._cache_form = self._dtype.name if options.kv_cache == "auto" and not is_int8 else _cache_form(options.kv_cache)
        self.groups = cache_groups(self._model.caches(cfg), PAGE_TOKENS)
        self._pages = Pages(self._model.caches(cfg), self._cache_form)
        self._is_closed = False
        self.vocab_size, self.num_embeddings = cfg.vocab_size, num_embeddings(cfg)
        self.num_pages = 0

    @property
    def fingerprint(self) -> str:
        formats = sorted({part.dtype.name for leaf in self._leaves.values() for part in _parts(leaf)})
        compute = self._options.dtype or "float32"
        rounding = f"activations-{self._options.activations} kv-{self._cache_form}"
        return f"reference numpy-{np.__version__} {compute} {rounding} weights-{'+'.join(formats)}"

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        assert num_pages >= 0
        self.num_pages = 0
        groups = self.groups if by_group else one_group(len(self.groups.group_of_layer()), PAGE_TOKENS)
        try:
            self._pages.allocate(num_pages, groups)
        except (MemoryError, ValueError) as problem:
            wanted = num_pages * self.page_bytes() // groups.count
            raise CapacityError(
                f"{num_pages} cache pages of {PAGE_TOKENS} tokens take {wanted} bytes and the system refused them. "
                "Ask for a shorter context or fewer sequences at once."
            ) from problem
        self.num_pages = num_pages

    def page_bytes(self) -> int:
        return self._pages.page_bytes

    def read_page(self, page: int) -> bytes:
        return self._pages.read(page)

    def write_page(self, page: int, contents: memoryview) -> None:
        self._pages.write(page, contents)

    def step(self, plan: Plan) -> StepResult:
        values = self._ops.begin(plan.watch)
        try:
            logits_RV = self.logits(plan).astype(np.float32)
        finally:
            self._ops.begin(None)
        choices: list[tuple[Choice, ...]] = []
        row = 0
        for span in plan.spans:
            row += span.num_outputs
            choices.append(tuple(map(_choose, logits_RV[row - len(span.draws) : row], span.draws)))
        return StepResult(tuple(choices), logits_RV if plan.want_logits else None, values)

    def value_names(self) -> tuple[str, ...]:
        """Found by running one token through pages of its own. A classifier has none."""
        if classifying(self._cfg) is not None:
            return ()
        pages, self._pages = self._pages, Pages(self._model.caches(self._cfg), self._dtype.name)
        try:
            self._pages.allocate(1, self._pages.groups)
            self._ops.names = []
            self._forward(Plan((Span(0, (0,), (0,), 1),)))
            return tuple(self._ops.names)
        finally:
            self._pages, self._ops.names = pages, None

    def classify(self, tokens: Sequence[int]) -> Floats:
        """Logits of a classifier's labels, in the type computed in."""
        classifier = classifying(self._cfg)
        assert classifier is not None, "only for classifiers"
        check_tokens(tokens, self.num_embeddings)
        with np.errstate(all="ignore"):
            logits_C: Floats = classifier.classify(self._weights, self._cfg, self._picture_ops, tokens)[0]
        return logits_C

    def encode(self, picture: Picture) -> list[Floats]:
        """A picture through the model's encoder: the tensors that its `encode` gives."""
        assert self._seeing is not None, "pictures only for models that see"
        tiles, _, height, width = picture.pixels.shape
        pixels = picture.pixels.astype(self._dtype)
        step = PictureStep(self._picture_ops, pixels, tiles, height, width, picture.rows, picture.columns)
        with np.errstate(all="ignore"):
            return list(self._seeing.encode(self._weights, self._cfg, step))

    def logits(self, plan: Plan) -> Floats:
        """One forward without draws: the wanted rows [R, V] in the type computed in."""
        self._check(plan)
        logits_RV = self._forward(plan)
        _refuse_not_numbers(logits_RV, plan)
        return logits_RV

    def _forward(self, plan: Plan) -> Floats:
        """Every adapter's spans by themselves, if there are any."""
        groups = by_adapter(plan)
        if len(groups) == 1:
            return self._forward_with(plan, next(iter(groups)))
        rows: dict[int, Floats] = {}
        for adapter, indices in groups.items():
            part = replace(plan, spans=tuple(plan.spans[index] for index in indices))
            ends = np.cumsum([span.num_outputs for span in part.spans])[:-1]
            rows.update(zip(indices, np.split(self._forward_with(part, adapter), ends), strict=True))
        return np.concatenate([rows[index] for index in range(len(plan.spans))])

    def _forward_with(self, plan: Plan, adapter: str | None) -> Floats:
        rows = rows_of(plan)
        positions = [np.arange(span.start, span.start + len(span.tokens)) for span in plan.spans]
        outputs = [np.arange(at.stop - span.num_outputs, at.stop) for span, at in zip(plan.spans, rows, strict=True)]
        crossing = 0 if self._seeing is None else self._seeing.num_crossing(self._cfg)
        memory, seen = memories(plan, self._encoded, crossing, self._cache_form) if crossing else ((), None)
        step = Step(
            ops=self._ops,
            tokens_T=np.concatenate([np.asarray(span.tokens, np.int64) for span in plan.spans]),
            positions_T=np.concatenate(positions),
            outputs_R=np.concatenate(outputs),
            cache=self._pages.layers(plan),
            pictures=None if crossing or self._seeing is None else overlays(plan, self._encoded),
            memory=memory,
            seen=seen,
        )
        with np.errstate(all="ignore"):
            weights = self._weights if adapter is None else self._adapters[adapter]
            logits_RV: Floats = self._model.forward(weights, self._cfg, step)
        return logits_RV

    def update(self, weights: Mapping[str, Matrix]) -> None:
        check_weights(weights, {spec.name: spec for spec in self._model.tensors(self._cfg)})
        if self._adapters:
            raise UsageError("Weights cannot be replaced while adapters are there; remove them first.")
        self._leaves.update(weights)
        self._weights = self._model.weights(self._cfg, self._leaves.__getitem__)
        self._arrays.clear()
        self._encoded.clear()

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        check_adapter(name, self._adapters, updates, {spec.name: spec for spec in self._model.tensors(self._cfg)})
        leaves = self._leaves | {at: update.over(self._leaves[at], at) for at, update in updates.items()}
        self._adapters[name] = self._model.weights(self._cfg, leaves.__getitem__)

    def remove_adapter(self, name: str) -> None:
        if self._adapters.pop(name, None) is None:
            raise unknown_adapter(name, self._adapters)

    def memory(self) -> MemoryUse:
        """`weights` counts the stored bytes (a mapped file's too) and what is kept converted; a step's own arrays come and go."""
        stored = sum(leaf.num_bytes for leaf in self._leaves.values())
        cache = self.num_pages * self._pages.page_bytes // self._pages.groups.count
        other = {"converted weights": self._arrays.num_bytes, "pictures": self._encoded.num_bytes}
        return MemoryUse(stored + self._arrays.num_bytes, cache, 0, other)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._arrays.clear()
            self._encoded.clear()
            self._leaves.clear()
            self._adapters.clear()
            self.allocate(0)
            del self._weights

    def _check(self, plan: Plan) -> None:
        """Everything that can be wrong with a plan, before anything is written."""
        if self._is_closed:
            raise UsageError("This model has been closed; load it again.")
        check_plan(plan, self._cfg, self.num_embeddings, self.num_pages, self._adapters, self._pages.groups, sees=self._seeing is not None)


def _check_options(options: BackendOptions) -> None:
    if options.dtype not in _COMPUTE:
        known = ", ".join(name for name in _COMPUTE if name)
        raise UsageError(f"dtype is {options.dtype!r}; the reference backend computes in one of: {known}.")
    check_processor(options, "reference")
    if options.threads is not None:
        raise UsageError("The reference backend leaves threads to numpy; leave out `threads`, or set OMP_NUM_THREADS before starting.")


def _cache_form(kv_cache: str) -> str:
    return "float16" if kv_cache == "auto" else kv_cache


def _refuse_not_numbers(logits_RV: Floats, plan: Plan) -> None:
    bad = ~np.isfinite(logits_RV)
    if bad.any():
        row, token = (int(index) for index in np.argwhere(bad)[0])
        ends = [span.start + len(span.tokens) - span.num_outputs for span in plan.spans]
        positions_R = [end + index for end, span in zip(ends, plan.spans, strict=True) for index in range(span.num_outputs)]
        raise FileProblem(
            f"The logit of token {token} at position {positions_R[row]} is {logits_RV[row, token]}, not a number to go on with. "
            "Weights that are damaged or too large for this number format do that: check the file against its published SHA-256."
        )


def _choose(logits_V: NDArray[np.float32], draw: Draw) -> Choice:
    from herd.sampling.chain import choose

    return choose(logits_V, draw)


def _parts(leaf: Matrix) -> tuple[Any, ...]:
    return (leaf.base, leaf.down, leaf.up) if isinstance(leaf, Adapted) else (leaf,)
