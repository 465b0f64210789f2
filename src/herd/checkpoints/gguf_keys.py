"""The keys of a GGUF file for a config of llama or Llama 4, and the exact config that files of ours keep beside them.

GGUF's numbers are float32 and its scalings are fewer than ours, so a file that herd writes has the whole config as one more key,
`herd.config`. What the ordinary keys say must be what that config means; else somebody has changed one of them.
`herd.widened.bf16` and `.f16` name weights that GGUF wants as float32 and that were narrower in the model that was converted.
"""

from __future__ import annotations

import json
import re
import struct
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from herd.checkpoints.config_reader import shown
from herd.checkpoints.config_text import describe, restore
from herd.dtypes import BF16, F16, DType
from herd.errors import FileProblem
from herd.files.json import parse_json
from herd.models.architecture import Config
from herd.models.llama import LlamaConfig
from herd.models.rope import Divisors, Linear, Llama3, Rope, Yarn

if TYPE_CHECKING:
    from herd.models.llama4 import Llama4Config

CONFIG, FILES = "herd.config", "herd.file."
CARRIED = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|ACCEPTABLE_USE|README|MODEL_CARD)[\w.-]*|generation_config\.json")
WIDENED: dict[str, DType] = {"herd.widened.bf16": BF16, "herd.widened.f16": F16}


def keys_of(cfg: LlamaConfig | Llama4Config) -> dict[str, Any]:
    """The ordinary keys. Scaling by fixed divisors is in the tensor `rope_freqs.weight`, which `divisors_of` gives."""
    at = "llama" if isinstance(cfg, LlamaConfig) else "llama4"
    keys: dict[str, Any] = {
        f"{at}.vocab_size": cfg.vocab_size,
        f"{at}.context_length": cfg.context_length,
        f"{at}.embedding_length": cfg.width,
        f"{at}.block_count": cfg.num_layers,
        f"{at}.feed_forward_length": cfg.ffn_width,
        f"{at}.attention.head_count": cfg.num_heads,
        f"{at}.attention.head_count_kv": cfg.num_kv_heads,
        f"{at}.attention.key_length": cfg.head_width,
        f"{at}.attention.value_length": cfg.head_width,
        f"{at}.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        f"{at}.rope.dimension_count": cfg.rope.width,
        f"{at}.rope.freq_base": cfg.rope.theta,
    }
    if not isinstance(cfg, LlamaConfig):
        from herd.checkpoints.gguf_llama4 import keys_of_llama4

        keys |= keys_of_llama4(cfg)
    return keys | _scaling(cfg.rope, at)


def _scaling(rope: Rope, architecture: str) -> dict[str, Any]:
    at = f"{architecture}.rope.scaling."
    match rope.scaling:
        case Linear(factor):
            return {f"{at}type": "linear", f"{at}factor": factor}
        case Yarn() as yarn:
            plain = Yarn(yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow)
            extra = rope.magnitude / Rope(rope.theta, rope.width, plain).magnitude
            return {
                f"{at}type": "yarn",
                f"{at}factor": yarn.factor,
                f"{at}original_context_length": yarn.original_context,
                f"{at}yarn_beta_fast": yarn.beta_fast,
                f"{at}yarn_beta_slow": yarn.beta_slow,
                **({f"{at}attn_factor": extra} if abs(extra - 1) > 1e-12 else {}),
            }
    return {f"{at}type": "none"}


def divisors_of(rope: Rope) -> tuple[float, ...] | None:
    """What plain frequencies are divided by, for scalings that have no keys."""
    if not isinstance(rope.scaling, Llama3 | Divisors):
        return None
    plain = Rope(rope.theta, rope.width).frequencies()
    return tuple(omega / scaled for omega, scaled in zip(plain, rope.frequencies(), strict=True))


def not_said(cfg: LlamaConfig | Llama4Config) -> list[str]:
    """What other programs do not learn about a config from a GGUF file."""
    if not isinstance(cfg, LlamaConfig):
        from herd.checkpoints.gguf_llama4 import not_said_of_llama4

        return not_said_of_llama4(cfg)
    if isinstance(cfg.rope.scaling, Yarn) and not cfg.rope.scaling.truncate:
        return ["that YaRN's ramp is not cut to whole indices: llama.cpp cuts it"]
    return []


def kept(cfg: LlamaConfig | Llama4Config) -> str:
    """The value of `herd.config`."""
    return json.dumps(describe(cfg), separators=(",", ":"))


def exact_config(cfg: Config, metadata: Mapping[str, Any], where: str) -> Config:
    """The config that the file keeps whole, if it does; `cfg` is what its ordinary keys and tensors say."""
    text = metadata.get(CONFIG)
    if text is None:
        return cfg
    if not isinstance(text, str) or len(text) > 1 << 20:
        raise FileProblem(f"{where}: {CONFIG} is {shown(text)}; allowed is a text.")
    exact: Any = restore(type(cfg), parse_json(text.encode("utf-8", "surrogatepass"), f"{where}: {CONFIG}"), f"{where}: {CONFIG}")
    plain: Any = cfg
    try:
        found: dict[str, Any] = {**keys_of(exact), **_told_by_tensors(exact), "rope_freqs.weight": _single(divisors_of(exact.rope))}
    except (ValueError, ZeroDivisionError, OverflowError, struct.error) as problem:
        raise FileProblem(f"{where}: {CONFIG} holds numbers from which no rotary frequencies follow ({problem}).") from problem
    told = {**_told_by_tensors(plain), "rope_freqs.weight": _single(_stored_divisors(plain.rope))}
    said = ChainMap[str, Any](told, cast(MutableMapping[str, Any], metadata))  # not copied: that would decode the vocabulary
    for key, value in found.items():
        if not _same(said.get(key), value):
            raise FileProblem(
                f"{where}: {key} is {shown(said.get(key))} and {CONFIG} means {shown(value)}. The file was changed after it was written; "
                f"remove {CONFIG} if the other keys are right."
            )
    return cast(Config, exact)


def _told_by_tensors(cfg: LlamaConfig | Llama4Config) -> dict[str, bool]:
    """What the presence of tensors says."""
    told = {"tied embeddings": cfg.tied_embeddings, "bias of q, k, v": cfg.qkv_bias, "bias of the output": cfg.out_bias}
    return {**told, "bias of the feed-forward": cfg.ffn_bias} if isinstance(cfg, LlamaConfig) else told


def _stored_divisors(rope: Rope) -> tuple[float, ...] | None:
    return rope.scaling.values if isinstance(rope.scaling, Divisors) else None


def _single(values: tuple[float, ...] | None) -> list[float] | None:
    """The same as float32."""
    return None if values is None else list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


def _same(one: Any, two: Any) -> bool:
    """Equal, numbers as float32 (the last bit may differ: other programs may have computed it)."""
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, float) or isinstance(two, float):
        return isinstance(one, int | float) and isinstance(two, int | float) and abs(one - two) <= 2.0**-22 * abs(two)
    return bool(one == two)


def widened(metadata: Mapping[str, Any], known: frozenset[str], where: str) -> dict[str, DType]:
    """Weights (by our names) that were narrower before they were written to this file."""
    found: dict[str, DType] = {}
    for key, dtype in WIDENED.items():
        names = metadata.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
            raise FileProblem(f"{where}: {key} is {shown(names)}; allowed is a list of names of weights.")
        found |= dict.fromkeys(names, dtype)
    return found


def texts(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """The files that the GGUF file carries inside, by name. They become files again, so only plain names are allowed."""
    found: dict[str, str] = {}
    for key in metadata:
        if not key.startswith(FILES):
            continue
        name, text = key.removeprefix(FILES), metadata[key]
        if not isinstance(text, str) or not CARRIED.fullmatch(name):
            raise FileProblem(
                f"{where}: {shown(key)} is {shown(text)}; allowed is the text of a licence, notice, policy, card or generation config."
            )
        found[name] = text
    return found
