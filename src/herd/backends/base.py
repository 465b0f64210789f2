"""What a backend is: weights and cache contents on some device, and one forward of a packed batch.

The engine owns page *numbers* and decides what runs (`Plan`, integers only); the backend owns page *contents* and makes
numbers. A page holds the keys and values of PAGE_TOKENS consecutive tokens of one sequence, for all layers or, where pages were
allocated by groups, for one group of layers (`models/cache_groups.py`): group g finds the token at position p in the sequence's page
`pages[p // PAGE_TOKENS * number of groups + g]`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from herd.errors import EngineLost, UnknownModel, UsageError, did_you_mean
from herd.models.architecture import Config, classifying
from herd.models.cache_groups import CacheGroups
from herd.models.weights import Kind, TensorSpec, Update
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.models.weights import Matrix
    from herd.sampling.draw import Choice, Draw

PAGE_TOKENS = 64
NO_PAGE = -1
"""In the place of a page that a sequence has given back, as none of its tokens from here on can see it, or has not yet."""
BACKENDS = ("cpu", "torch", "reference")
KV_CACHES = ("auto", "float32", "float16", "int8", "int4")
KEPT_PICTURES = 8
KEPT_BYTES = 1 << 30
"""Pictures that nobody looked at lately are dropped when there are more, or when all take more."""


class Picture(Protocol):
    """A prepared picture (made by `herd.images`): normalised pixels [tiles, 3, height, width], the grid its tiles lie in, and a
    digest of everything that went into it."""

    @property
    def pixels(self) -> NDArray[np.float32]: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture of a sequence and the positions of the tokens that stand for it: one per row of features (early fusion), or
    the one token from which on it is seen (cross-attention)."""

    picture: Picture
    positions: Sequence[int]


@dataclass(frozen=True, slots=True)
class Watch:
    """What a researcher wants of a step: values to read by name, and values to replace by what a function makes of them
    (same shape and type). Names are those of `Backend.value_names`."""

    read: frozenset[str] = frozenset()
    patch: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)  # made for every token: what is frozen takes three times as long to make
class Span:
    """One sequence's part of a step: `tokens` at positions `start`, `start + 1`, ...

    Everything before `start` must already be in the cache, as far as the span's tokens see it: pages that they do not see may be
    `NO_PAGE`. `pages` covers at least `start + len(tokens)` tokens, block by block, in each the page of every group of layers.
    Logits are computed for the last `num_outputs` tokens. `draws` ask the backend to choose a token after each of the last
    `len(draws)` of those, from that one's logits. `pictures` are all of the sequence's, wherever they are in it. `adapter` names the LoRA
    adapter that was added for it; None: the model itself.
    """

    start: int
    tokens: Sequence[int]
    pages: Sequence[int]
    num_outputs: int = 0
    draws: tuple[Draw, ...] = ()
    pictures: tuple[Placed, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step: spans of different sequences, run as one forward. `want_logits` returns the rows themselves too; `watch`
    reads or replaces values on the way, which may cost speed and the promise of equal bits."""

    spans: tuple[Span, ...]
    want_logits: bool = False
    watch: Watch | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(span.tokens) for span in self.spans)

    @property
    def num_outputs(self) -> int:
        return sum(span.num_outputs for span in self.spans)


def by_adapter(plan: Plan) -> dict[str | None, list[int]]:
    """Which spans have which adapter."""
    found: dict[str | None, list[int]] = {}
    for index, span in enumerate(plan.spans):
        found.setdefault(span.adapter, []).append(index)
    return found


def check_adapter(name: str, known: Collection[str], updates: Mapping[str, Update], specs: Mapping[str, TensorSpec]) -> None:
    """`UsageError` for an adapter that is there already, or that does not fit the weights that `specs` declares."""
    if name in known:
        raise UsageError(f"There is an adapter named {name!r} already; remove it first, or give this one another name.")
    for at, update in updates.items():
        spec = specs.get(at)
        if spec is None or spec.kind is not Kind.MATRIX:
            raise UsageError(f"The adapter {name!r} updates {at}, which is no matrix of this model's layers.")
        (rank, columns), (rows, same) = update.down.shape, update.up.shape
        if (rows, columns) != spec.shape or rank != same:
            found = f"{list(update.up.shape)} times {list(update.down.shape)}"
            raise UsageError(f"The adapter {name!r} updates {at} by {found}; the model's is {list(spec.shape)}. It is of another model.")


def check_weights(weights: Mapping[str, Matrix], specs: Mapping[str, TensorSpec]) -> None:
    """`UsageError` for new weights that are none of those that `specs` declares, by name or by shape."""
    for name, leaf in weights.items():
        if name not in specs:
            raise UsageError(f"There is no weight {name} in this model; names are those of its module's `tensors`.")
        if tuple(leaf.shape) != specs[name].shape:
            raise UsageError(f"The new {name} has shape {list(leaf.shape)}; the model's has {list(specs[name].shape)}.")


def unknown_adapter(name: str, known: Iterable[str]) -> UnknownModel:
    return UnknownModel(f"There is no adapter {name!r:.80} here; there are {', '.join(sorted(known)) or 'none'}.", param="model")


def pictures_seen(pictures: Sequence[Placed], end: int) -> list[tuple[int, int, list[Picture]]]:
    """(first position, end, pictures seen there): a token sees the picture before it, and those of an unbroken run of picture
    tokens together, up to its own."""
    found: list[tuple[int, int, list[Picture]]] = []
    run: list[Picture] = []
    for index, placed in enumerate(pictures):
        (position,) = placed.positions
        follows = index > 0 and pictures[index - 1].positions[0] == position - 1
        run = [*run, placed.picture] if follows else [placed.picture]
        stop = pictures[index + 1].positions[0] if index + 1 < len(pictures) else end
        found.append((position, min(stop, end), run))
    return [each for each in found if each[0] < each[1]]


class Encoded:
    """What `encode` made of pictures (anything with `nbytes`): of all that this step and the last one looked at, as the next one will
    look at most of them again, and of earlier ones while there are few."""

    def __init__(self, encode: Callable[[Picture], Sequence[Any]]) -> None:
        self._encode = encode
        self._of: OrderedDict[bytes, Sequence[Any]] = OrderedDict()
        self._last_step: set[bytes] = set()
        self._this_step: set[bytes] = set()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self._of.values() for tensor in tensors)

    def begin_step(self) -> None:
        """What is asked for from now on belongs to another step."""
        self._last_step, self._this_step = self._this_step, set()

    def get(self, picture: Picture) -> Sequence[Any]:
        """Encodes the picture unless it is kept."""
        found = self._of.pop(picture.digest, None)
        self._of[picture.digest] = made = self._encode(picture) if found is None else found
        self._this_step.add(picture.digest)
        wanted = len(self._last_step | self._this_step)
        while len(self._of) > wanted and (len(self._of) > KEPT_PICTURES or self.num_bytes > KEPT_BYTES):
            self._of.popitem(last=False)
        return made

    def clear(self) -> None:
        self._of.clear()


def check_kv_cache(kv_cache: str) -> None:
    """`UsageError` for a format that does not exist."""
    if kv_cache not in KV_CACHES:
        raise UsageError(f"kv_cache is {kv_cache!r:.60}{did_you_mean(kv_cache, KV_CACHES)} Keys and values: {', '.join(KV_CACHES)}.")


def check_processor(options: BackendOptions, backend: str) -> None:
    """`UsageError` for what no backend does that computes on this processor with its own kernels or numpy's."""
    if options.activations not in ("int8", "float32"):
        raise UsageError(f'activations is {options.activations!r}; it must be "int8" or "float32".')
    check_kv_cache(options.kv_cache)
    if options.device != "cpu":
        raise UsageError(f'device is {options.device!r}; the {backend} backend runs on "cpu" only.')


def check_tokens(tokens: Sequence[int], num_embeddings: int, start: int = 0) -> None:
    """`UsageError` for an id that is not in the embedding."""
    for offset, token in enumerate(tokens):
        if not 0 <= token < num_embeddings:
            where = f"Token id {token} at position {start + offset}"
            raise UsageError(f"{where} is outside the vocabulary; ids go from 0 to {num_embeddings - 1}.")


def check_plan(
    plan: Plan, cfg: Config, num_embeddings: int, num_pages: int, adapters: Collection[str], groups: CacheGroups, *, sees: bool
) -> None:
    """Everything that can be wrong with a plan, before anything is written: `UsageError` for what a user asked of it."""
    refuse_classifier(cfg)
    if not sees:
        refuse_pictures(plan)
    assert plan.spans, "a step without spans"
    for span in plan.spans:
        check_tokens(span.tokens, num_embeddings, span.start)
        if span.adapter is not None and span.adapter not in adapters:
            raise unknown_adapter(span.adapter, adapters)
        _check_span(span, num_pages, groups)


def _check_span(span: Span, num_pages: int, groups: CacheGroups) -> None:
    """The engine's side of the bargain."""
    assert span.tokens and span.start >= 0, "a span has tokens at positions from 0"
    assert 0 <= span.num_outputs <= len(span.tokens), "outputs are tokens of the span"
    assert len(span.draws) <= span.num_outputs, "a draw needs its token's logits"
    blocks = groups.blocks_for(span.start + len(span.tokens))
    assert len(span.pages) >= blocks * groups.count, "pages cover all tokens"
    assert all(NO_PAGE <= page < num_pages for page in span.pages), "pages were allocated"
    for group in range(groups.count):
        seen = span.pages[groups.first_block(group, span.start) * groups.count + group : blocks * groups.count : groups.count]
        assert NO_PAGE not in seen, "what a token sees is in a page"


def refuse_pictures(plan: Plan) -> None:
    """`UsageError` for a plan with pictures: for a model that has no eyes."""
    if any(span.pictures for span in plan.spans):
        raise UsageError("This model takes no pictures; leave them out, or load a model that sees.")


def refuse_classifier(cfg: Config) -> None:
    """`UsageError` for a step of a model that has no next token."""
    if classifying(cfg) is not None:
        raise UsageError("This model is a classifier of whole texts and has no next token. Use model.classify(text).")


@dataclass(frozen=True, slots=True)
class StepResult:
    """`logits_RV` float32, rows in the order of the spans, or None when not wanted; `choices` for each span one per
    draw, in their order; `values` what the plan's watch read, rows in the order of the spans: [T, ...], of a softmax a list with an
    array [N, t, positions] for each span."""

    choices: tuple[tuple[Choice, ...], ...]
    logits_RV: NDArray[np.float32] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to run. `threads` None: all physical cores this process may use. `dtype` None: as stored; else "float32",
    "bfloat16", "float16" or, for the reference and torch, "float64". `activations`: what block-quantised weights are multiplied with.
    `kv_cache`: how keys and values are kept, one of `KV_CACHES`; "auto" is float16 with int8 activations, else what is computed in.
    `max_step_tokens`: the largest step the buffers are made for."""

    threads: int | None = None
    dtype: str | None = None
    activations: str = "int8"
    device: str = "cpu"
    kv_cache: str = "auto"
    max_step_tokens: int = 512
    max_step_outputs: int = 64


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that a backend holds, by what for."""

    weights: int
    cache: int
    buffers: int
    other: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Mortal(Protocol):
    """A backend of several processes, one of which can end. `lost`: why it can never answer again; None while it can."""

    @property
    def lost(self) -> EngineLost | None: ...


class Backend(Protocol):
    """One loaded model on one device. Not safe to call from two threads at once; the engine does not. `vocab_size`: the width of
    its logits; `num_embeddings`: how many token ids it may be given, which may be more; `groups`: of its layers, each with pages of its
    own."""

    name: str
    vocab_size: int
    num_embeddings: int
    num_pages: int
    groups: CacheGroups

    @property
    def fingerprint(self) -> str:
        """Names everything that may change bits: backend, version, instruction set, number formats."""
        ...

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        """Makes room for pages 0 .. num_pages-1, dropping what was cached. `by_group`: each holds a group of layers, not all.
        `CapacityError` if memory does not suffice."""
        ...

    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        ...

    def read_page(self, page: int) -> bytes:
        """The keys and values of a page, bytes that only this kind of backend understands: `page_bytes()`, or `group_page_bytes`."""
        ...

    def write_page(self, page: int, contents: memoryview) -> None:
        """Makes a page hold what `read_page` gave, bit for bit."""
        ...

    def step(self, plan: Plan) -> StepResult:
        """One forward. `UsageError` for a token id outside the vocabulary, before anything is written.
        A logit that is not a number raises `FileProblem` naming the sequence's position; the cache stays usable."""
        ...

    def value_names(self) -> tuple[str, ...]:
        """The values that a plan's `watch` may name, in the order in which they arise."""
        ...

    def classify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """A whole text -> one number per label, for a classifier. `UsageError` for a token id outside the vocabulary."""
        ...

    def update(self, weights: Mapping[str, Matrix]) -> None:
        """Replaces weights by name (training reaches a running engine through this)."""
        ...

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        """Gives spans a LoRA adapter to name: low-rank updates of matrices by their names in the model's `tensors`. What spans
        without it compute does not change by a bit. `UsageError` for one that does not fit, `CapacityError` for memory."""
        ...

    def remove_adapter(self, name: str) -> None:
        """Forgets it. `UsageError` for one that is not there."""
        ...

    def memory(self) -> MemoryUse: ...

    def close(self) -> None:
        """Gives everything back. Idempotent."""
        ...


def group_page_bytes(backend: Backend) -> int:
    """Bytes of one page that was allocated by group."""
    return backend.page_bytes() // backend.groups.count
