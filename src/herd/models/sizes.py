"""Bytes and counts of a model, all summed from the one list of its weights and the shapes of its operations.

"Bytes" are of what a thing needs, not of what a program happens to hold; backends report the latter (`Backend.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from herd.dtypes import BY_NAME, F16, F32, Q4_0, Q8_0, DType
from herd.models.architecture import CacheShape, Config, architecture_of
from herd.models.cache_groups import cache_groups
from herd.models.weights import Kind, TensorSpec, stored_bytes
from herd.records import dataclass


def count_parameters(cfg: Config) -> int:
    """Number of values in all weights; a tied head counts once."""
    return sum(spec.count for spec in architecture_of(cfg).tensors(cfg))


def ffn_width(width: int, multiple_of: int, multiplier: float | None = None) -> int:
    """The feed-forward width that Meta's params.json means: two thirds of 4 * width, times `ffn_dim_multiplier`, both cut to
    whole numbers, then rounded up to a multiple of `multiple_of`."""
    wanted = 2 * 4 * width // 3
    if multiplier is not None:
        wanted = int(multiplier * wanted)
    return math.ceil(wanted / multiple_of) * multiple_of


def weight_bytes(cfg: Config, dtype: DType | Callable[[TensorSpec], DType]) -> int:
    """Bytes of all weights, stored in one format or in the one that a function names for each of them. `FileProblem` if a
    block format does not divide a row."""
    chosen: Callable[[TensorSpec], DType] = (lambda _: dtype) if isinstance(dtype, DType) else dtype
    return sum(stored_bytes(chosen(spec), spec.shape) for spec in architecture_of(cfg).tensors(cfg))


def part_of(spec: TensorSpec) -> str:
    """Which part of a model a weight belongs to, for tables: what it does, or the encoder of pictures."""
    pieces = spec.name.split(".")
    if pieces[0] == "vision":
        return "vision"
    if spec.kind.is_vector:
        return "norms and biases"
    if spec.kind in _PARTS:
        return _PARTS[spec.kind]
    if "shared" in pieces:
        return "shared experts"
    return "attention" if "attention" in pieces or pieces[-1] in ("q", "k", "v", "out") else "feed-forward"


_PARTS = {Kind.EMBEDDING: "embedding", Kind.HEAD: "head", Kind.EXPERTS: "experts", Kind.ROUTER: "routers"}


def weight_parts(cfg: Config, dtype: Callable[[TensorSpec], DType]) -> dict[str, int]:
    """The bytes of `weight_bytes`, by part."""
    parts: dict[str, int] = {}
    for spec in architecture_of(cfg).tensors(cfg):
        parts[part_of(spec)] = parts.get(part_of(spec), 0) + stored_bytes(dtype(spec), spec.shape)
    return parts


_PACKED = {"q5_0": 26, "q5_1": 28, "q2_k": 164, "q3_k": 146, "q4_k": 148, "q5_k": 212, "iq4_xs": 138}
"""Bytes of a block once the processor's backend has packed it, where they are not the file's: codes of 4, 6 or 8 bits and scales that are
whole bytes (csrc/kernels/layout.h)."""
PROGRAM_BYTES, VOCABULARY_BYTES = 48_000_000, 115
"""Of a process with an engine on a processor, besides weights, cache and buffers: the interpreter with its libraries and what was made
on the way; and for each token of the vocabulary its bytes, its place in a table and its merges. Measured."""


def program_bytes(cfg: Config) -> int:
    """What the engine's process takes besides weights, cache and buffers."""
    return PROGRAM_BYTES + VOCABULARY_BYTES * cfg.vocab_size


def packed(dtype: DType) -> DType:
    """The format as the processor's backend holds it in memory; values that a file keeps with scales apart are read as float32."""
    if dtype.name not in BY_NAME:
        return F32
    return replace(dtype, block_bytes=_PACKED.get(dtype.name, dtype.block_bytes))


CACHE_DTYPES = {"float32": F32, "float16": F16, "int8": Q8_0, "int4": Q4_0}
"""The format of a block of keys or values, by the name that `kv_cache` has for it; a head is filled up to whole blocks. The bytes are
those of these formats; what they mean is defined in `backends/reference/integer_cache.py`."""


GLOBAL_LAYERS, LOCAL_LAYERS = "global layers", "local layers"


@dataclass(frozen=True, slots=True)
class CacheKind:
    """Layers that keep alike: `bytes_per_token` of all of them together; none looks back further than `reach` (None: to the first)."""

    num_layers: int
    reach: int | None
    bytes_per_token: int

    @property
    def name(self) -> str:
        return GLOBAL_LAYERS if self.reach is None else LOCAL_LAYERS

    def num_bytes(self, num_tokens: int) -> int:
        """What the layers must keep of a sequence of `num_tokens` so that the next token can be computed."""
        return self.bytes_per_token * (num_tokens if self.reach is None else min(num_tokens, self.reach))


def cache_kinds(cfg: Config, dtype: DType = F16) -> tuple[CacheKind, ...]:
    """The model's caches by how far they look back, global layers first."""
    shapes = architecture_of(cfg).caches(cfg)
    reaches = sorted({shape.reach for shape in shapes}, key=lambda reach: (reach is not None, reach or 0))
    return tuple(
        CacheKind(len(own), reach, sum(_bytes_per_token(shape, dtype) for shape in own))
        for reach in reaches
        if (own := [shape for shape in shapes if shape.reach == reach])
    )


def needed_cache_bytes(cfg: Config, num_tokens: int, dtype: DType = F16) -> int:
    """Keys and values that later tokens can still see: of layers that look back a window or chunk, no more than that."""
    return sum(kind.num_bytes(num_tokens) for kind in cache_kinds(cfg, dtype))


def cache_bytes_per_token(cfg: Config, dtype: DType = F16) -> int:
    """Keys and values of one token over all layers."""
    return sum(_bytes_per_token(shape, dtype) for shape in architecture_of(cfg).caches(cfg))


def _bytes_per_token(shape: CacheShape, dtype: DType) -> int:
    columns = math.ceil(shape.head_width / dtype.block) * dtype.block
    return 2 * stored_bytes(dtype, (shape.num_kv_heads, columns))


def cache_bytes(cfg: Config, num_tokens: int, page_tokens: int, dtype: DType = F16) -> int:
    """The cache of one sequence of `num_tokens`, in whole pages of `page_tokens`, of which every layer keeps everything."""
    return math.ceil(num_tokens / page_tokens) * page_tokens * cache_bytes_per_token(cfg, dtype)


def kept_cache_bytes(cfg: Config, num_tokens: int, page_tokens: int, step_tokens: int, dtype: DType = F16) -> dict[str, int]:
    """The cache that the engine takes for one sequence of `num_tokens`, by kind of layer, in whole pages of `page_tokens`: of layers with
    a window what it may reach while steps of up to `step_tokens` are computed. Pages are counted by `CacheGroups`, as the engine does."""
    groups = cache_groups(architecture_of(cfg).caches(cfg), page_tokens)
    page_bytes = page_tokens * cache_bytes_per_token(cfg, dtype) // groups.count
    seeing_all = groups.windows.count(None) * groups.blocks_for(num_tokens)
    pages = {GLOBAL_LAYERS: seeing_all, LOCAL_LAYERS: groups.pages_for(num_tokens, step_tokens) - seeing_all}
    return {name: count * page_bytes for name, count in pages.items() if count * page_bytes}


def buffer_bytes(cfg: Config, num_tokens: int, num_outputs: int) -> int:
    """Float32 activations that one step of `num_tokens` needs at the same time, and its logits.

    Besides the residual stream x and its norm, the values inside one block are alive: of attention the queries and what is read
    with them, keys and values (and gates); of a feed-forward gate, up and their product; of experts the scores, and for each chosen
    one its input, gate, up, product and output, beside what the shared expert gave. The block that needs most counts.
    """
    widest = 2 * cfg.width + max(_inner_widths(cfg), default=0)
    return F32.block_bytes * (num_tokens * widest + num_outputs * (cfg.width + cfg.vocab_size))


def _inner_widths(cfg: Config) -> list[int]:
    """For each different block of the language model, how many values a token has inside it at once. A matrix that ends a block
    (`out`, `down`) reads what the block has made; the others make it."""
    blocks: dict[str, dict[str, int]] = {}
    scores: dict[str, int] = {}
    for spec in architecture_of(cfg).tensors(cfg):
        place, _, name = spec.name.rpartition(".")
        if spec.kind is Kind.ROUTER:
            scores[place] = spec.shape[0]
        if spec.kind in (Kind.MATRIX, Kind.EXPERTS) and part_of(spec) != "vision":
            blocks.setdefault(place, {})[name] = spec.shape[-1] if name in ("out", "down") else spec.shape[-2]
    widths = []
    for place, values in blocks.items():
        layer, _, name = place.rpartition(".")
        width = sum(values.values())
        widths.append(cfg.width + scores[layer] + num_chosen(cfg) * (width + 2 * cfg.width) if name == "experts" else width)
    return widths


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """How many values of a token a layer's matrices handle: `inside`, all that they make or, where they end a block (`out`, `down`), read;
    `widest` of them; `turned`, the queries and keys among them; and how many `matrices` they are."""

    inside: int
    widest: int
    turned: int
    matrices: int


def layer_widths(cfg: Config) -> tuple[LayerWidths, ...]:
    """For each layer of the language model, in order; of experts the chosen ones."""
    layers: dict[str, list[tuple[str, int]]] = {}
    for spec in architecture_of(cfg).tensors(cfg):
        pieces = spec.name.split(".")
        if spec.kind not in (Kind.MATRIX, Kind.EXPERTS) or pieces[0] not in ("layers", "crossing"):
            continue
        size = spec.shape[-1] if pieces[-1] in ("out", "down") else spec.shape[-2]
        times = num_chosen(cfg) if spec.kind is Kind.EXPERTS else 1
        layers.setdefault(".".join(pieces[:2]), []).append((pieces[-1], times * size))
    return tuple(
        LayerWidths(
            sum(size for _, size in found),
            max(size for _, size in found),
            sum(size for name, size in found if name in ("q", "k")),
            len(found),
        )
        for found in layers.values()
    )


def num_chosen(cfg: Config) -> int:
    """How many experts a token goes to, in layers that have them."""
    return int(getattr(cfg, "num_chosen", 1))


def distinct_experts(num_experts: int, chosen: int, num_tokens: int) -> float:
    """How many experts of a layer a step of `num_tokens` meets on average, if every expert is as likely as any other."""
    return num_experts * (1.0 - (1.0 - chosen / num_experts) ** num_tokens)
