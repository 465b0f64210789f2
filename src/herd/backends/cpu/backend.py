"""`Backend` on native code: packs the weights once, traces the model once, and runs a step as one native call.

Instruction set: the best that this processor and build have, or the one that the environment variable HERD_ISA names.
The cache holds what `kv_cache` says; "auto" is float16 where block-quantised weights are multiplied with int8 activations, else
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from herd import _core
from herd.backends.base import (
    PAGE_TOKENS,
    BackendOptions,
    MemoryUse,
    Plan,
    StepResult,
    Watch,
    check_tokens,
    refuse_classifier,
)
from herd.backends.cpu.adapters import Adapters
from herd.backends.cpu.choosing import all_finite, choose, copied, not_finite
from herd.backends.cpu.kept import Origin
from herd.backends.cpu.loading import Loading, Source
from herd.backends.cpu.lower import lower
from herd.backends.cpu.machine import check_options, make_machine
from herd.backends.cpu.packed import PLAIN_DTYPES, PackedAdapted, PackedMatrix, Packer, Updates
from herd.backends.cpu.trace import OUTPUT_ROWS, PICTURES, POSITIONS, SEEN, TOKENS, TracingOps
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.architecture import CacheShape, Config, architecture_of, classifying, num_embeddings, seeing
from herd.models.cache_groups import CacheGroups, cache_groups, one_group
from herd.models.ops import Step
from herd.models.weights import Leaf, Matrix, TensorSpec, Update
from herd.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.backends.cpu.larger import Larger
    from herd.backends.cpu.lower import Mark
    from herd.backends.cpu.pictures import Pictures, StepPictures
    from herd.backends.cpu.watch import WatchedProgram
    from herd.checkpoints.checkpoint import Checkpoint

_SHORT = {"float32": "f32", "float16": "f16"}


class CpuBackend:
    """A model on the processor. A sequence's bits do not depend on threads, on how its prompt was cut or on what else a step
    holds. `release` gives back the pages of the file; `fuse` False runs every operation by itself. With `origin`, packed weights are
    kept for the next start. With `checkpoint`, whose weights `leaf` gives, plain matrices are packed after the first answer. With `larger`
    as well, memory does not hold the weights: they are packed into the kept file, mapped, and read as they are used."""

    name = "cpu"

    def __init__(
        self,
        cfg: Config,
        leaf: Leaf,
        options: BackendOptions,
        release: Callable[[], None],
        *,
        fuse: bool = True,
        origin: Origin | None = None,
        checkpoint: Checkpoint | None = None,
        larger: Larger | None = None,
    ) -> None:
        check_options(options)
        self._cfg = cfg
        self._options = options
        self._fuse = fuse
        self._machine = make_machine(options.threads)
        self._packer = Packer(self._machine, options.activations, PLAIN_DTYPES[options.dtype])
        self._model = architecture_of(cfg)
        self._specs: dict[str, TensorSpec] = {spec.name: spec for spec in self._model.tensors(cfg)}
        self._watched: WatchedProgram | None = None
        self._pictures: Pictures | None = None
        self._loading = Loading(self._packer, options, self._specs, Source(leaf, release, origin, checkpoint, larger))
        self._adapters = Adapters(self._packer, self._specs)
        try:
            self._packed = self._loading.load()
            caches = self._model.caches(cfg)
            assert len({(each.num_heads, each.num_kv_heads, each.head_width) for each in caches}) <= 1, "one cache shape for all layers"
            self._shape = caches[0] if caches else CacheShape(1, 1, 1)  # a classifier keeps nothing
            self.groups = cache_groups(caches, PAGE_TOKENS)
            self._divide(one_group(len(caches), PAGE_TOKENS))
            self._larger = larger
            self._program, self._value_names, _ = self._trace()
            self._chooser = _core.Chooser(self._machine, cfg.vocab_size)
        except MemoryError as problem:
            raise CapacityError(_NO_MEMORY) from problem
        self._is_closed = False
        self.vocab_size, self.num_embeddings = cfg.vocab_size, num_embeddings(cfg)
        self.num_pages = 0

    @property
    def fingerprint(self) -> str:
        cache = _SHORT.get(self._cache_form(), self._cache_form())
        dtype = f"/{self._options.dtype}" if self._options.dtype else ""
        return f"cpu/{self._machine.isa}/{self._options.activations}{dtype}/kv-{cache} herd-{__version__}"

    @property
    def threads(self) -> int:
        return self._machine.threads

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        assert num_pages >= 0
        self.num_pages = 0
        groups = self.groups if by_group else one_group(len(self.groups.group_of_layer()), PAGE_TOKENS)
        try:
            if num_pages and groups != self._divided:
                self._divide(groups)
                self._traced()
            self._cache.allocate(num_pages)
            for program in self._programs():
                program.cache_changed()
        except (MemoryError, ValueError) as problem:
            self._cache.allocate(0)
            raise CapacityError(
                f"{num_pages} cache pages of {PAGE_TOKENS} tokens take {num_pages * self._cache.page_bytes} bytes and the system refused "
                "them. Ask for a shorter context or fewer sequences at once."
            ) from problem
        self.num_pages = num_pages

    def _divide(self, groups: CacheGroups) -> None:
        """From now on a page holds the layers of one of these groups. Programs are of the cache before."""
        kept = self._shape.num_kv_heads, self._shape.head_width, self._cache_form()
        self._cache = _core.Cache(max(len(groups.group_of_layer()), 1), *kept, groups.group_of_layer())
        self._divided = groups

    def page_bytes(self) -> int:
        return self._cache.page_bytes * self._divided.count

    def read_page(self, page: int) -> bytes:
        return b"".join(self._cache.page(layer, page) for layer in self._divided.layers[0])

    def write_page(self, page: int, contents: memoryview) -> None:
        assert contents.nbytes == self._cache.page_bytes
        layers = self._divided.layers[0]
        size = contents.nbytes // len(layers)
        for index, layer in enumerate(layers):
            self._cache.page(layer, page)[:] = contents[index * size : (index + 1) * size]

    def step(self, plan: Plan) -> StepResult:
        if self._is_closed:
            raise UsageError("This model has been closed; load it again.")
        refuse_classifier(self._cfg)
        self._loading.refuse_damaged()
        program, bad_rows, values = self._run(plan)
        if bad_rows and (packed := self._loading.again()) is not None:
            self._packed = packed
            self._traced()
            program, bad_rows, values = self._run(plan)
        if bad_rows:
            raise FileProblem(not_finite(plan, bad_rows[0]))
        choices = choose(self._chooser, plan, program)
        logits_RV = copied(program.logits()) if plan.want_logits else None
        self._loading.answered()
        return StepResult(choices, logits_RV, values)

    def _run(self, plan: Plan) -> tuple[_core.Program, list[int], Mapping[str, Any]]:
        """The program that ran, the rows of logits that are not finite, and what was watched."""
        try:
            pictures = self._pictures_of(plan) if any(span.pictures for span in plan.spans) else ()
            watched = None if plan.watch is None else self._watching(plan.watch)
        except MemoryError as problem:
            raise CapacityError(_NO_MEMORY) from problem
        program = self._program if watched is None else watched.program
        spans = [(span.start, span.tokens, span.pages, span.num_outputs) for span in plan.spans]
        numbers = self._adapters.numbers(plan)
        if numbers and watched is not None:
            raise UsageError("Values cannot be watched where an adapter answers; load the model with it: herd.load(..., adapter=...).")
        try:
            if numbers:
                adapted = self._adapters.program
                assert adapted is not None, "traced when the adapter was added"
                picture_rows, features, seeing = pictures or (None, None, ())
                return adapted, adapted.step(spans, picture_rows, features, seeing, numbers), {}
            if watched is None:
                return program, program.step(spans, *pictures), {}
            program.begin(spans, *pictures)
        except ValueError as problem:
            raise UsageError(f"{problem}.") from problem
        return program, *watched.run(plan)

    def classify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self._is_closed:
            raise UsageError("This model has been closed; load it again.")
        self._loading.refuse_damaged()
        check_tokens(tokens, self.num_embeddings)
        scores = self._scores(tokens)
        if not all_finite(scores) and (packed := self._loading.again()) is not None:
            self._packed = packed
            scores = self._scores(tokens)
        self._loading.answered()
        return scores

    def _scores(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        from herd.backends.cpu.picture_ops import CpuPictureOps

        classifier = classifying(self._cfg)
        assert classifier is not None, "only for classifiers"
        ops = cast(Any, CpuPictureOps(self._machine))
        return cast("NDArray[np.float32]", classifier.classify(self._weights(), self._cfg, ops, tokens)[0])

    def update(self, weights: Mapping[str, Matrix]) -> None:
        for name in weights:
            if name not in self._specs:
                raise UsageError(f"There is no weight {name} in this model; names are those of its module's `tensors`.")
        try:
            packed = {name: self._packer.pack(self._specs[name], leaf) for name, leaf in weights.items()}
            self._packed.update(packed)
            self._traced()
        except MemoryError as problem:
            raise CapacityError(_NO_MEMORY) from problem

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        try:
            self._adapters.add(name, updates)
            self._trace_adapted()
        except MemoryError as problem:
            raise CapacityError(_NO_MEMORY) from problem

    def remove_adapter(self, name: str) -> None:
        self._adapters.remove(name)
        self._trace_adapted()

    def _trace_adapted(self) -> None:
        self._adapters.program = None
        if self._adapters:
            self._adapters.program, _, _ = self._trace(updates=self._adapters.of(self._packed))

    def value_names(self) -> tuple[str, ...]:
        return self._value_names

    def memory(self) -> MemoryUse:
        weights = sum(packed.num_bytes for packed in self._packed.values())
        other = {} if self._pictures is None else {"pictures": self._pictures.num_bytes}
        if self._adapters:
            other["adapters"] = self._adapters.num_bytes
        buffers = sum(program.buffer_bytes for program in self._programs())
        return MemoryUse(weights, self.num_pages * self._cache.page_bytes, buffers, other)

    def profile(self, on: bool) -> list[tuple[str, float]]:
        """(label, seconds) of every instruction since profiling was switched on; then switches it on from zero, or off."""
        times = self._program.profile_seconds()
        self._program.profile(on)
        return times

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loading.close()
        self.allocate(0)
        del self._program
        self._watched = self._pictures = None
        self._adapters.clear()
        self._packed.clear()

    def _cache_form(self) -> str:
        """Float16 loses less than int8 activations do; a model computed in more precision keeps its cache in more."""
        if self._options.kv_cache != "auto":
            return self._options.kv_cache
        return "float16" if any(packed.is_int8 for packed in self._packed.values()) else "float32"

    def _traced(self) -> None:
        """The program of every step, made anew; what was made of the weights before is gone."""
        self._watched = self._pictures = None
        self._program, self._value_names, _ = self._trace()
        self._trace_adapted()

    def _trace(
        self, watched: frozenset[str] = frozenset(), updates: Mapping[PackedMatrix | PackedAdapted, Updates] | None = None
    ) -> tuple[_core.Program, tuple[str, ...], list[Mark]]:
        """A program with taps at the values `watched`, the names of all values, and where to find those. `updates`: with those of
        the adapters on matrices that have some."""
        cfg, options = self._cfg, self._options
        program = _core.Program(
            self._machine,
            self._cache,
            self._shape.num_heads,
            options.max_step_tokens,
            options.max_step_outputs,
            cfg.vocab_size,
            num_embeddings(cfg),
            len(self._adapters) if updates else 0,
        )
        if classifying(cfg) is not None:
            return program, (), []
        ops = TracingOps(watched, updates or {})
        layers, model = range(len(self._model.caches(cfg))), seeing(cfg)
        # The tensors of this backend are nodes, and names of what a step brings along.
        step = Step(
            ops=cast(Any, ops),
            tokens_T=TOKENS,
            positions_T=POSITIONS,
            outputs_R=OUTPUT_ROWS,
            cache=layers,
            pictures=PICTURES,
            memory=range(0 if model is None else model.num_crossing(cfg)),
            seen=SEEN,
        )
        marks = lower(program, ops.nodes, self._model.forward(self._weights(), cfg, step), fuse=self._fuse)
        if self._larger is not None:
            self._larger.read_ahead(program)
        return program, tuple(ops.names), marks

    def _weights(self) -> Any:
        """The model's tree of packed weights. A tied head is the embedding table: both uses share the packed matrix."""
        return self._model.weights(self._cfg, cast(Leaf, self._packed.__getitem__))

    def _programs(self) -> list[_core.Program]:
        if self._is_closed:
            return []
        watched = None if self._watched is None else self._watched.program
        return [program for program in (self._program, self._adapters.program, watched) if program is not None]

    def _watching(self, watch: Watch) -> WatchedProgram:
        """The program with taps at these values: the last one again, or another."""
        from herd.backends.cpu.watch import WatchedProgram

        names = watch.read | watch.patch.keys()
        for name in sorted(names):
            if name not in self._value_names:
                raise UsageError(f"This model has no value named {name}; the names are those of `value_names()`.")
        if self._watched is None or self._watched.names != names:
            self._watched = None
            program, _, marks = self._trace(frozenset(names))
            self._watched = WatchedProgram(
                program, tuple(marks), frozenset(names), self._cache, self._shape, self._cache_form(), self._divided
            )
        return self._watched

    def _pictures_of(self, plan: Plan) -> StepPictures:
        from herd.backends.cpu.pictures import Pictures

        model = seeing(self._cfg)
        if model is None:
            raise UsageError("This model takes no pictures; leave them out, or load a model that sees.")
        if self._pictures is None:
            self._pictures = Pictures(self._machine, model, self._cfg, self._weights(), self._cache_form())
        return self._pictures.of(plan)


_NO_MEMORY = "The system refused memory for the weights or buffers. Close other programs, or load a smaller or more quantised model."
