"""How weights may be stored: the names that people use, and for each weight of a model the number format that a name means.

Pictures' encoders stay at 16 bits in every format: they are small and suffer most. Norms and biases are float32 where matrices
are quantised, as in GGUF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.dtypes import BF16, BY_NAME, F8_E4M3, F32, DType
from herd.errors import UsageError, did_you_mean
from herd.models.architecture import Config, architecture_of
from herd.models.sizes import packed, part_of
from herd.models.weights import Kind, TensorSpec
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

Chosen = Callable[[TensorSpec], DType]

# Group of 128 along the input with a float32 scale: 4 bits and 32/128 more.
INT4_GROUPS = DType("int4", -1, 128, 68)
_WORDS = {
    "16": "bf16", "16bit": "bf16", "float16": "f16", "fp16": "f16", "half": "f16", "bfloat16": "bf16", "32": "f32", "fp32": "f32",
    "float32": "f32", "8": "q8_0", "8bit": "q8_0", "q8": "q8_0", "4": "q4_0", "4bit": "q4_0", "q4": "q4_0", "q5": "q5_0", "q6": "q6_k",
    "float8": "fp8", "f8": "fp8", "q4_k_s": "q4_k", "q5_k_s": "q5_k",
}  # fmt: skip
_MIXED = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}
_NEAREST = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "iq4_xs": "iq4_nl", "q4_k": "q4_0", "q5_k": "q5_0", "q6_k": "q8_0"}


@dataclass(frozen=True, slots=True)
class Format:
    """A way to store a model. `chosen` names each weight's number format; `multiplied` are the peaks of a device that bound its
    products, best first; `note` says what it means."""

    name: str
    chosen: Chosen
    multiplied: tuple[str, ...]
    note: str

    def on(self, kind: str) -> Format:
        """The same as a device of this kind holds it: on processors, as herd's engine packs it and multiplies it."""
        return replace(self, chosen=self._packed, multiplied=(*self.multiplied, "fp32")) if kind == "cpu" else self

    def _packed(self, spec: TensorSpec) -> DType:
        return packed(self.chosen(spec))


def is_plain(name: str) -> bool:
    """Whether a format, by any of its spellings, stores every weight as a number of its own, as far as a name tells."""
    dtype = BY_NAME.get(_spelt(name))
    return dtype is not None and not dtype.is_block


def _spelt(name: str) -> str:
    """A format's own name, of the spellings that people use."""
    wanted = name.strip().lower().replace("-", "_").removesuffix("bits").removesuffix("_").strip()
    return _WORDS.get(wanted.replace("_", "") if wanted.replace("_", "") in _WORDS else wanted, wanted)


def names() -> tuple[str, ...]:
    """All names of formats, the widest first; `herd plan --quant` takes these and common other spellings."""
    return ("f32", "bf16", "f16", "fp8", *(name for name, dtype in BY_NAME.items() if dtype.is_block), *_MIXED, "int4")


def format_named(name: str, release: Release, config: Config) -> Format:
    """The format that a user means, for this model. `UsageError` for an unknown one, and for one that cannot be for this model."""
    wanted = _spelt(name)
    if wanted in _MIXED:
        return _mixed(wanted, release, config)
    if wanted == "fp8":
        return _published_fp8(release, config)
    if wanted == "int4":
        return _metas_int4(release, config)
    dtype = BY_NAME.get(wanted)
    if dtype is None:
        raise UsageError(f"--quant is {name!r:.40}{did_you_mean(wanted, names())} The formats are {', '.join(names())}.")
    if not dtype.is_block:
        return Format(
            wanted, lambda _: dtype, ("fp32",) if dtype is F32 else ("bf16", "fp32"), f"every weight in {8 * dtype.block_bytes} bits"
        )
    _check_rows(dtype, wanted, release, config)
    note = f"{dtype.bits_per_weight:g} bits a weight with scales; norms and routers wider, the encoder of pictures in 16 bits"
    return Format(wanted, lambda spec: dtype if _is_cut(spec) else _wide(spec), ("int8", "bf16", "fp32"), note)


def _is_cut(spec: TensorSpec) -> bool:
    return not spec.kind.is_vector and spec.kind is not Kind.ROUTER and part_of(spec) != "vision"


def _wide(spec: TensorSpec) -> DType:
    return F32 if spec.kind.is_vector else BF16


def _check_rows(dtype: DType, name: str, release: Release, config: Config) -> None:
    for spec in architecture_of(config).tensors(config):
        if _is_cut(spec) and spec.shape[-1] % dtype.block:
            raise UsageError(
                f"{name} does not exist for {release.name}: it stores {dtype.block} weights a block, and the rows of {spec.name} have "
                f"{spec.shape[-1]}, which is no whole number of blocks. {_NEAREST.get(dtype.name, 'bf16')} fits."
            )


def _mixed(name: str, release: Release, config: Config) -> Format:
    """llama.cpp's recipes: six bits for the head, and for values and the ends of feed-forwards in the first and last eighth of
    the layers and every third between."""
    base, more = BY_NAME[_MIXED[name]], BY_NAME["q6_k"]
    _check_rows(base, name, release, config)
    tied = not any(spec.kind is Kind.HEAD for spec in architecture_of(config).tensors(config))

    def chosen(spec: TensorSpec) -> DType:
        if not _is_cut(spec):
            return _wide(spec)
        if spec.kind is Kind.HEAD or (tied and spec.kind is Kind.EMBEDDING):
            return more
        pieces = spec.name.split(".")
        is_raised = pieces[0] == "layers" and pieces[-1] in ("v", "down") and _gets_more(int(pieces[1]), config.num_layers)
        return more if is_raised else base

    return Format(name, chosen, ("int8", "bf16", "fp32"), f"llama.cpp's mix: {base.name}, and q6_k for the head and half of two matrices")


def _gets_more(layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _published_fp8(release: Release, config: Config) -> Format:
    """Meta's float8 releases: feed-forwards (of Llama 4 the routed experts) of all layers but the first and last, one float32 scale
    a row; the rest in 16 bits."""
    has_experts = any(spec.kind is Kind.EXPERTS for spec in architecture_of(config).tensors(config))
    last = config.num_layers - 1

    def chosen(spec: TensorSpec) -> DType:
        pieces = spec.name.split(".")
        is_inner = pieces[0] == "layers" and 0 < int(pieces[1]) < last
        is_meant = spec.kind is Kind.EXPERTS if has_experts else part_of(spec) == "feed-forward"
        return _scaled_rows(spec) if is_inner and is_meant else BF16

    what = "the routed experts" if has_experts else "the feed-forwards"
    return Format(
        "fp8",
        chosen,
        ("fp8", "bf16"),
        f"as in Meta's float8 releases: float8 for {what} but in the first and last layer, the rest in 16 bits",
    )


def _scaled_rows(spec: TensorSpec) -> DType:
    """Float8 with a float32 scale for each row."""
    columns = spec.shape[-1]
    return DType(F8_E4M3.name, -1, columns, columns + 4)


def _metas_int4(release: Release, config: Config) -> Format:
    """Meta's int4 for Llama 4, made while loading: experts and shared experts in groups of 128, the rest in 16 bits."""
    if not any(spec.kind is Kind.EXPERTS for spec in architecture_of(config).tensors(config)):
        raise UsageError(
            f"int4 is Meta's format for models with experts, made while loading; it does not exist for {release.name}. Take q4_0 or q4_k."
        )

    def chosen(spec: TensorSpec) -> DType:
        return INT4_GROUPS if spec.kind is Kind.EXPERTS or part_of(spec) == "shared experts" else BF16

    return Format("int4", chosen, ("bf16",), "Meta's own: experts in 4 bits with a float32 scale per 128, the rest in 16 bits")
