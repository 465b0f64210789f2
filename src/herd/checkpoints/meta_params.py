"""params.json, Meta's description of a model: to a config, and from one.

It names a rule where others name a number: the feed-forward width follows from `multiple_of` and `ffn_dim_multiplier`, the
vocabulary of Llama 1 and 2 from the tokenizer (-1). It has no word for context length, tied embeddings, biases, or rotary scaling
other than Llama 3's; files that we write keep the exact config under `herd` for those. Source: Meta's `llama_models/llama3/args.py`,
`model.py`, and published files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.config_text import describe, restore
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig
from herd.models.rope import Llama3, Rope
from herd.models.sizes import ffn_width

C = TypeVar("C")
FILE = "params.json"
CONCLUSION = "herd reads folders whose params.json it understands whole."
RUNTIME = "a limit of the program that runs the model"
HARMLESS = {
    "max_batch_size": RUNTIME,
    "max_seq_len": RUNTIME,
    "quantization_args": "compared with the tensors",
    "lora_args": "read with the adaptors",
}
# What Meta's program takes for `use_scaled_rope` (its file has no key), and the sizes whose Hugging Face configs say 32 instead.
META_SCALING = Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
FACTOR_32 = {(2048, 16), (3072, 28)}
# rope_theta, whether scaled -> the context length of the releases that have them.
CONTEXTS = {(500000.0, True): 131072, (500000.0, False): 8192, (1000000.0, False): 16384}
EARLIEST_CONTEXT = 4096
# What published files combine: (multiple_of, ffn_dim_multiplier).
PUBLISHED = [(256, None), (4096, 1.3), (1024, 1.3), (4096, 1.2), (256, 1.5), (256, 1.0), (256, 1.3), (256, 1.2)]


def read_params(values: Mapping[str, Any], vocab_size: int, facts: dict[str, Fact]) -> LlamaConfig:
    """The config; `vocab_size` is what the tokenizer or the embedding says, for files that say -1. `FileProblem` for all that is
    wrong. Whether the head is the embedding again is not told here: False."""
    r = ConfigReader({key: value for key, value in values.items() if key != "herd"}, FILE, facts)
    width = r.integer("dim", "width", highest=MAX_WIDTH)
    num_heads = r.integer("n_heads", "num_heads", highest=MAX_HEADS)
    if width % num_heads and not r.has("head_dim"):
        r.problem(f"dim is {width}, which n_heads {num_heads} does not divide")
    head_width = r.integer("head_dim", "head_width", highest=MAX_WIDTH, default=max(1, width // num_heads))
    num_layers = r.integer("n_layers", "num_layers", highest=MAX_LAYERS)
    multiple_of = r.integer("multiple_of", highest=MAX_VOCABULARY, default=256)
    multiplier = r.number("ffn_dim_multiplier", lowest=1e-3, highest=1e3) if r.has("ffn_dim_multiplier") else r.raw("ffn_dim_multiplier")
    rope = _rope(r, head_width, (width, num_layers))
    cfg = LlamaConfig(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.integer("n_kv_heads", "num_kv_heads", highest=MAX_HEADS, default=num_heads),
        head_width=head_width,
        ffn_width=ffn_width(width, multiple_of, multiplier),
        vocab_size=_vocab_size(r, vocab_size, facts),
        context_length=CONTEXTS.get((rope.theta, rope.scaling is not None), EARLIEST_CONTEXT),
        norm_eps=r.number("norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        rope=rope,
    )
    r.finish(CONCLUSION, HARMLESS)
    facts["architecture"] = Fact("llama", f"the keys of {FILE}")
    facts["ffn_width"] = Fact(cfg.ffn_width, f"dim, multiple_of and ffn_dim_multiplier in {FILE}")
    facts["context_length"] = Fact(cfg.context_length, f"assumed: {FILE} does not say; releases with this rope_theta have it")
    return exact_config(LlamaConfig, values, params_of, facts) if "herd" in values else cfg


def _rope(r: ConfigReader, head_width: int, size: tuple[int, int]) -> Rope:
    theta = r.number("rope_theta", "rope_theta", lowest=1.0, highest=1e15, default=10000.0)
    if not r.boolean("use_scaled_rope", default=False):
        for key in ("rope_scaling_factor", "rope_high_freq_factor"):
            r.expect(key, because="without use_scaled_rope positions are not scaled")
        return Rope(theta, head_width)
    assumed = 32.0 if size in FACTOR_32 else META_SCALING.factor
    factor = r.number("rope_scaling_factor", lowest=1e-6, highest=1e6, default=assumed)
    high = r.number("rope_high_freq_factor", lowest=1e-6, highest=1e6, default=META_SCALING.high_freq_factor)
    scaling = replace(META_SCALING, factor=factor, high_freq_factor=max(high, META_SCALING.low_freq_factor))
    why = f"use_scaled_rope in {FILE}"
    if assumed == 32.0 and not r.has("rope_scaling_factor"):
        why += "; factor 32 as the Hugging Face files of this size say (Meta's own program computes with 8)"
    r.facts["rope_scaling"] = Fact(scaling, why)
    return Rope(theta, head_width, scaling)


def _vocab_size(r: ConfigReader, counted: int, facts: dict[str, Fact]) -> int:
    declared = r.raw("vocab_size")
    if declared is None or (declared == -1 and not isinstance(declared, bool)):
        facts["vocab_size"] = Fact(counted, f"the tokenizer and the embedding, since {FILE} says {shown(declared)}")
        return counted
    return r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY)


def exact_config(kind: type[C], values: Mapping[str, Any], params_of: Callable[[C], dict[str, Any]], facts: dict[str, Fact]) -> C:
    """The config that a file of ours keeps under `herd`, if the ordinary keys, which `params_of` writes, agree with it."""
    kept = values["herd"]
    if not isinstance(kept, dict) or set(kept) != {"config"}:
        raise FileProblem(f"{FILE}: herd is {shown(kept)}; allowed is an object with config.")
    exact = restore(kind, kept["config"], f"{FILE}: herd.config")
    try:
        params = params_of(exact)
    except (ValueError, ArithmeticError, LookupError) as problem:
        raise FileProblem(f"{FILE}: herd.config holds numbers from which no model follows ({problem}).") from problem
    for key, value in params.items():
        if values.get(key) != value:
            raise FileProblem(
                f"{FILE}: {key} is {shown(values.get(key))} and herd.config means {shown(value)}. The file was changed after it was "
                "written; remove its key herd if the other keys are right."
            )
    said: Any = exact
    facts["context_length"] = Fact(said.context_length, f"herd.config in {FILE}")
    facts["rope_scaling"] = Fact(said.rope.scaling, f"herd.config in {FILE}")
    return exact


def params_of(cfg: LlamaConfig) -> dict[str, Any]:
    """The ordinary keys of params.json for a config."""
    multiple_of, multiplier = _rule(cfg.width, cfg.ffn_width)
    params: dict[str, Any] = {
        "dim": cfg.width,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.num_heads,
        "n_kv_heads": cfg.num_kv_heads,
        "vocab_size": cfg.vocab_size,
        "multiple_of": multiple_of,
        "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if cfg.head_width * cfg.num_heads != cfg.width:
        params["head_dim"] = cfg.head_width
    if isinstance(cfg.rope.scaling, Llama3):
        params["use_scaled_rope"] = True
        if cfg.rope.scaling != META_SCALING:
            params["rope_scaling_factor"] = cfg.rope.scaling.factor
            params["rope_high_freq_factor"] = cfg.rope.scaling.high_freq_factor
    return params


def not_said(cfg: LlamaConfig) -> list[str]:
    """What of a config Meta's own program does not read from params.json, so that it would compute something else or refuse."""
    notes = []
    if cfg.rope.scaling not in (None, META_SCALING):
        instead = "with its own numbers" if isinstance(cfg.rope.scaling, Llama3) else "without it"
        notes.append(f"its rotary scaling, {cfg.rope.scaling}: llama-models computes {instead}")
    if cfg.head_width * cfg.num_heads != cfg.width:
        notes.append(f"its head width {cfg.head_width}: llama-models divides the width by the heads and refuses these tensors")
    if cfg.qkv_bias or cfg.out_bias or cfg.ffn_bias:
        notes.append("its biases: llama-models has none and refuses them")
    return notes


def kept(cfg: object) -> dict[str, Any]:
    """The value of the key `herd`."""
    return {"config": describe(cfg)}


def _rule(width: int, wanted: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` from which the feed-forward width follows."""
    for multiple_of, multiplier in PUBLISHED:
        if ffn_width(width, multiple_of, multiplier) == wanted:
            return multiple_of, multiplier
    plain = 2 * 4 * width // 3
    return (wanted, None) if plain <= wanted else (wanted, wanted / plain)
