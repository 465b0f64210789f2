"""A step of herd's own trainer on a processor, moment by moment: which bytes are alive when it is fullest.

It follows `training/student` where its native kernels run, with activations and gradients in float32. Of a layer are kept what goes into
each norm and each product, queries, keys and values, gate and up (`fused.py`, `native_attention.py`), or where layers are computed twice
their inputs (`checkpointing.py`); of the logits a chunk lives at a time (`cross_entropy.py`). On the way back a layer's values go as its
gradients come. Processors without vector instructions take torch's own operations, which take more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from herd.dtypes import F32, Q4_0
from herd.models.architecture import Config, architecture_of
from herd.models.sizes import LayerWidths, layer_widths, num_chosen, part_of
from herd.models.weights import Kind, TensorSpec
from herd.records import dataclass

WIDE = F32.block_bytes
CHUNK_BYTES, MIN_CHUNK_ROWS = 48 << 20, 16
BLOCK_ROWS, BLOCK_KEYS = 48, 16
"""Queries that attention takes at a time, and to whole blocks of how many tokens it fills keys and values up (`learn_attention.cpp`)."""
PIECE = 1 << 20
"""Values of a matrix in blocks that are decoded at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A step: what is learned, of which the packs are. `rank` 0: all weights. `blocks`: frozen matrices are stored in Q4_0. `tokens` of
    its largest pack, `longest` of its longest document; `packs` of them in a step; `keep_bytes` for a frozen base as it is multiplied;
    `threads` that compute."""

    rank: int
    blocks: bool
    tokens: int
    longest: int
    packs: int
    recompute: bool
    keep_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at a moment that may be the fullest, in bytes: gradients that weights have, and everything else that comes and goes."""

    when: str
    activations: int
    gradients: int

    @property
    def total(self) -> int:
        return self.activations + self.gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Bytes of a layer. `kept` for the way back, `whole` once it is computed (again); of its widest values, gate or up, `gated`; of queries
    `queries`, of queries, keys and values `turned`; the `workspace` of attention's way back; `decoding` while its largest matrix is
    decoded; `learned`: gradients of its weights, `turning` of those that make queries, keys and values, `largest` of one."""

    kept: int
    whole: int
    gated: int
    queries: int
    turned: int
    workspace: int
    decoding: int
    learned: int
    turning: int
    largest: int

    def backward(self, stream: int) -> Iterator[Moment]:
        """The way back through it; `stream`: a value for each column of each token. A feed-forward's gradients come first, and beside all
        that is its own stands what comes back past it, or past attention."""
        yield Moment("a feed-forward's last product", self.whole + stream + self.gated + self.decoding, self.largest)
        # What went into that product is gone; there are gradients of it, and of gate and up, which are one tensor.
        yield Moment("a gate", self.whole + stream + 2 * self.gated, self.largest)
        # Of the feed-forward's values only that tensor is left, and there is what each of the two products gives back.
        begin = self.whole - self.gated + 3 * stream + self.decoding
        yield Moment("a feed-forward's first products", begin, min(3 * self.largest, self.learned))
        # Gone are the feed-forward's values, its norm's argument and result, and what attention made; what comes back to that is there.
        attention = self.whole - 3 * self.gated - stream
        yield Moment("attention", attention + self.turned + self.workspace, self.learned - self.turning)
        # Queries, keys and values went, and what comes back to them is there; and what two of their products give back.
        yield Moment("attention's first products", attention - self.queries + 2 * stream + self.decoding, self.learned)


def moments(config: Config, learning: Learning) -> Iterator[Moment]:
    """The moments of a step's last pack, in order. Gradients of packs before it are there from the beginning: then each new one is added to
    its own and goes; else it stays."""
    specs, layers = text_of(config), _layers(config, learning)
    stream = WIDE * learning.tokens * config.width
    everything, is_later = learned_bytes(specs, learning), learning.packs > 1
    words, head = (learned_bytes((spec for spec in specs if spec.kind is kind), learning) for kind in (Kind.EMBEDDING, Kind.HEAD))
    is_tied, table = head == 0, head or words
    kept, gradients = sum(layer.kept for layer in layers), everything if is_later else 0
    # The rows that predict something, before and after the last norm, and what comes back to them.
    yield Moment("the loss", kept + 3 * stream + table + logits_bytes(config, learning.tokens, is_learned=table > 0), gradients)
    yield Moment("the way back begins", kept + 3 * stream + 2 * table, gradients)
    waiting = table if is_tied and is_later else 0  # for what words get of the same table
    gradients += 0 if is_later else table
    for layer in reversed(layers):
        kept -= layer.kept
        for moment in layer.backward(stream):
            new, stays = (layer.largest, 0) if is_later else (0, moment.gradients)
            yield Moment(moment.when, moment.activations + kept + waiting + new, gradients + stays)
        gradients += 0 if is_later else layer.learned
    yield Moment("words", stream + waiting + (words if is_tied or is_later else 0), everything)


def _layers(config: Config, learning: Learning) -> list[Layer]:
    groups: dict[str, list[TensorSpec]] = {}
    for spec in text_of(config):
        if spec.name.startswith(("layers.", "crossing.")):
            groups.setdefault(".".join(spec.name.split(".")[:2]), []).append(spec)
    keeps_all = decoded_bytes(text_of(config)) <= learning.keep_bytes
    return [_layer(config, learning, specs, widths, keeps_all) for specs, widths in zip(groups.values(), layer_widths(config), strict=True)]


def _layer(config: Config, learning: Learning, specs: list[TensorSpec], widths: LayerWidths, keeps_all: bool) -> Layer:
    of_tokens = WIDE * learning.tokens
    # An update keeps the few columns that it makes of its input. Products of joined matrices are one tensor, so that values hold on to the
    # queries and keys that they were made with.
    is_joined = learning.rank > 0 and learning.keep_bytes > 0 and not learning.recompute
    values = 4 * config.width + widths.inside + learning.rank * widths.matrices + (widths.turned if is_joined else 0)
    values += widths.turned if getattr(config, "qk_norm", False) else 0  # before that norm
    values += _mixed(config, specs, learning)
    whole = of_tokens * values + _held_decoded(specs, learning)
    matrices = [spec for spec in specs if spec.kind in (Kind.MATRIX, Kind.EXPERTS)]
    made = {spec.name.rpartition(".")[2]: spec.shape[0] for spec in specs if spec.kind is Kind.MATRIX}
    queries, keys, values_read = (made.get(name, 0) for name in "qkv")
    heads = int(getattr(config, "num_heads", 0))
    return Layer(
        kept=of_tokens * config.width if learning.recompute else whole,
        whole=whole,
        gated=of_tokens * widths.widest,
        queries=of_tokens * queries,
        turned=of_tokens * (queries + keys + values_read),
        workspace=workspace_bytes(learning, queries, keys, queries // heads if heads else 0),
        decoding=0 if keeps_all or not learning.blocks else _decoding_bytes(matrices),
        learned=learned_bytes(specs, learning),
        turning=learned_bytes((spec for spec in specs if spec.name.rpartition(".")[2] in ("q", "k", "v")), learning),
        largest=max(learned_bytes([spec], learning) for spec in matrices),
    )


def _mixed(config: Config, specs: list[TensorSpec], learning: Learning) -> int:
    """Values of a token that experts keep besides what they make: what they are given, before and after it is weighed, and what they
    give. Where they are not learned, what goes into a product is not needed."""
    inner = [spec.shape[-1] for spec in specs if spec.kind is Kind.EXPERTS and spec.name.endswith(".down")]
    given = 3 * config.width if learning.rank == 0 else 2 * config.width - sum(inner)
    return num_chosen(config) * given if inner else 0


def _held_decoded(specs: list[TensorSpec], learning: Learning) -> int:
    """Frozen experts in blocks that tokens go to are kept decoded from the way there to the way back: nearly all of them."""
    if learning.rank == 0 or not learning.blocks:
        return 0
    return WIDE * sum(spec.count for spec in specs if spec.kind is Kind.EXPERTS)


def text_of(config: Config) -> list[TensorSpec]:
    """The weights of the language model."""
    return [spec for spec in architecture_of(config).tensors(config) if part_of(spec) != "vision"]


def learned_bytes(specs: Iterable[TensorSpec], learning: Learning) -> int:
    """What is learned of these weights: all of them, or updates of the layers' matrices."""
    if learning.rank == 0:
        return WIDE * sum(spec.count for spec in specs)
    adapted = [spec for spec in specs if spec.kind is Kind.MATRIX and spec.name.startswith(("layers.", "crossing."))]
    return WIDE * sum(learning.rank * sum(spec.shape) for spec in adapted)


def is_in_blocks(spec: TensorSpec) -> bool:
    """Whether a frozen base has this weight in blocks of four bits; tables of words and vectors stay plain."""
    return spec.kind in (Kind.MATRIX, Kind.EXPERTS) and spec.shape[-1] % Q4_0.block == 0


def joined_bytes(specs: Iterable[TensorSpec], learning: Learning) -> int:
    """Columns that frozen matrices of one input get for their updates, where they are kept as one (`joined.py`)."""
    if learning.rank == 0 or learning.keep_bytes == 0:
        return 0
    rows: dict[str, list[int]] = {}
    for spec in specs:
        place, _, name = spec.name.rpartition(".")
        together = next((names for end, names in TOGETHER.items() if place.endswith(f".{end}") and name in names), None)
        if together is not None and spec.kind is Kind.MATRIX and place.startswith("layers."):
            rows.setdefault(place, []).append(spec.shape[0])
    return WIDE * learning.rank * sum(len(made) * sum(made) for made in rows.values())


TOGETHER = {"attention": ("q", "k", "v"), "ffn": ("gate", "up")}


def decoded_bytes(specs: Iterable[TensorSpec]) -> int:
    """All that can be kept decoded of a base in blocks."""
    return WIDE * sum(spec.count for spec in specs if is_in_blocks(spec))


def _decoding_bytes(matrices: list[TensorSpec]) -> int:
    """While the largest of these is decoded: its values, and those of a piece before they are scaled; as they are written, after it too."""
    count = max((math.prod(spec.shape[-2:]) for spec in matrices if is_in_blocks(spec)), default=0)
    return WIDE * (2 * count if count <= PIECE else count + 2 * PIECE)


def workspace_bytes(learning: Learning, queries: int, keys: int, head_width: int) -> int:
    """What attention's way back works in (`Workspace` of csrc/learning/attention.cpp), of so many values of a token: of each document
    keys twice and values once, filled up; of each thread a block's scores, slopes and weights, the latter two once more as products read
    them, its queries, what comes back to it and a result; and what comes back to the keys and values of each query's head."""
    documents = -(-learning.tokens // learning.longest)
    filled = -(-learning.longest // BLOCK_KEYS) * BLOCK_KEYS
    scratch = BLOCK_ROWS * (5 * filled + 3 * head_width)
    return WIDE * (3 * documents * filled * keys + learning.threads * scratch + 2 * learning.tokens * queries)


def logits_bytes(config: Config, tokens: int, *, is_learned: bool) -> int:
    """What the logits take that exist at a time: where there are several chunks, those of the one before are still there when the next
    are made. `is_learned`: of the table, for which rows are multiplied by their weights."""
    rows = max(MIN_CHUNK_ROWS, CHUNK_BYTES // (WIDE * config.vocab_size))
    first, later = min(tokens, rows), min(rows, max(0, tokens - rows))
    if getattr(config, "logit_cap", None) is not None:
        # Logits, what the cap makes of them, its derivative and a factor of that; between chunks the first of them is gone.
        return WIDE * config.vocab_size * max(4 * first, 3 * (first + later))
    weighed = config.width * first if is_learned else 0
    return WIDE * max(config.vocab_size * first + weighed, config.vocab_size * (first + later))
