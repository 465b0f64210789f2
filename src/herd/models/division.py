"""How a model is divided among processes: which weights, along which side, and what each process then has of it.

    column   q, k, v, gate, up       rows of the matrix are divided: each process makes its own heads or columns of the whole input
    row      out, down               columns are divided: each multiplies what it made itself, and the products are summed
    experts                          each has some of the experts, or some columns of all of them; what all make is summed
    head                             rows of the vocabulary; the logits of all are put side by side

Everything else (embedding, norms, router, the encoder of pictures) is whole in each process, which computes the same of it as the others.
This is a property of a weight's *name*. Both who runs a model (`backends/torch/ranks`) and who trains one (`training/student/sharing.py`)
read it here. Sources: arXiv 1909.08053 (columns and rows), arXiv 2006.16668 (experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from herd.models.architecture import Config
from herd.models.llama import LlamaConfig
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama4 import Llama4Config
from herd.models.muse_glimmer import MuseGlimmerConfig
from herd.models.weights import TensorSpec
from herd.records import dataclass


class Divided(Enum):
    """What of a model is divided. Of the two ways to divide experts a model has one or none."""

    LAYERS = "heads of attention and columns of feed-forwards"
    EXPERTS = "experts, each of them whole"
    EXPERT_COLUMNS = "columns of each expert"
    HEAD = "rows of the head"


LAYERS: Mapping[str, int] = {
    **dict.fromkeys(("q", "k", "v", "gate", "up", "q_bias", "k_bias", "v_bias", "gate_bias", "up_bias"), 0),
    **dict.fromkeys(("out", "down"), 1),
}
"""Which side of a layer's weight is divided, by the last part of its name."""
EXPERTS: Mapping[str, int] = {"gate": 1, "up": 1, "down": 2}
"""The same of the stacked matrices of experts, where each is divided."""
OF_KV_HEADS = frozenset(("k", "v", "k_bias", "v_bias"))
BLOCKS = frozenset(("attention", "ffn", "shared"))
PARTIAL_VALUES = frozenset(("q", "k", "v", "weights", "heads", "gate", "hidden"))
"""Named values, by the last part of their name, of which each process has its heads or columns."""
CONFIGS = (LlamaConfig, Llama3VisionConfig, Llama4Config, MuseGlimmerConfig)


@dataclass(frozen=True, slots=True)
class Division:
    """The part `index` of `count`. `kv_copies`: so many processes, one after another, have a copy of the same kv head."""

    index: int
    count: int
    of: frozenset[Divided]
    kv_copies: int = 1

    def axis(self, name: str) -> int | None:
        """Which side of the weight of this name, or of a moment of it ("NAME.first"), is divided; None: it is whole."""
        pieces = name.split(".")
        if pieces[0] == "head":
            return 0 if Divided.HEAD in self.of else None
        if pieces[0] not in ("layers", "crossing"):
            return None
        if "experts" in pieces:
            if Divided.EXPERT_COLUMNS in self.of:
                return EXPERTS[_last(pieces)]
            return 0 if Divided.EXPERTS in self.of else None
        return LAYERS.get(_last(pieces)) if Divided.LAYERS in self.of and BLOCKS.intersection(pieces) else None

    def update_axes(self, name: str) -> tuple[int | None, int | None]:
        """Which side of `down` and which of `up` is divided, of the low-rank update of the matrix of this name: of a matrix whose rows are
        divided `up` is, of others `down`. What each process adds are its own rows then, or it sums up like its own products."""
        axis = self.axis(name)
        return (None, None) if axis is None else (None, 0) if axis == 0 else (1, None)

    def span(self, name: str, size: int) -> tuple[int, int]:
        """Which of the `size` steps along its divided side this process has of a weight: from, to."""
        copies = self.kv_copies if _last(name.split(".")) in OF_KV_HEADS else 1
        each = size // (self.count // copies)
        first = self.index // copies * each
        return first, first + each

    def spec(self, whole: TensorSpec) -> TensorSpec:
        """The declaration of this process's part of a weight."""
        axis = self.axis(whole.name)
        if axis is None:
            return whole
        first, last = self.span(whole.name, whole.shape[axis])
        return replace(whole, shape=(*whole.shape[:axis], last - first, *whole.shape[axis + 1 :]))

    def config(self, cfg: Any) -> Any:
        """The architecture as the functions of a model see it here: with this process's heads."""
        if Divided.LAYERS not in self.of:
            return cfg
        return replace(cfg, num_heads=cfg.num_heads // self.count, num_kv_heads=cfg.num_kv_heads * self.kv_copies // self.count)

    def whole_config(self, cfg: Any) -> Any:
        """The other way round."""
        if Divided.LAYERS not in self.of:
            return cfg
        return replace(cfg, num_heads=cfg.num_heads * self.count, num_kv_heads=cfg.num_kv_heads * self.count // self.kv_copies)

    def indivisible(self, cfg: Config) -> Iterator[tuple[Divided, int, str]]:
        """What does not divide by the number of processes: of which kind it is, how many there are, and what they are called. The config
        is one of `CONFIGS`."""
        assert isinstance(cfg, CONFIGS), "a model that can be divided"
        counts: list[tuple[Divided, int, str]] = []
        if Divided.LAYERS in self.of:
            counts.append((Divided.LAYERS, cfg.num_heads, "heads"))
            counts.append((Divided.LAYERS, cfg.num_kv_heads * self.kv_copies, "kv heads"))
            counts.append((Divided.LAYERS, cfg.ffn_width, "columns of its feed-forward"))
            if isinstance(cfg, Llama4Config):
                counts.append((Divided.LAYERS, cfg.expert_width, "columns of its shared expert"))
        if Divided.EXPERTS in self.of:
            counts.append((Divided.EXPERTS, cfg.num_experts if isinstance(cfg, Llama4Config) else 0, "experts"))
        for kind, number, what in counts:
            if not number or number % self.count:
                yield kind, number, what


def to_run(cfg: Config, index: int, count: int) -> Division:
    """How a model is divided that only runs: all that can be. Where there are more processes than kv heads, some have the same."""
    of = {Divided.LAYERS}
    kv_heads: int = getattr(cfg, "num_kv_heads", 1)
    if isinstance(cfg, Llama4Config):
        of.add(Divided.EXPERT_COLUMNS)
    if cfg.vocab_size % count == 0:
        of.add(Divided.HEAD)
    return Division(index, count, frozenset(of), count // kv_heads if count > kv_heads and count % kv_heads == 0 else 1)


def is_whole(value: str) -> bool:
    """Whether each process has the whole of this named value, when layers are divided."""
    return value.rpartition(".")[2] not in PARTIAL_VALUES


def _last(pieces: list[str]) -> str:
    """The part of a name that says what a weight does; a moment of it has one part more."""
    return next((piece for piece in reversed(pieces) if piece in LAYERS), "")
