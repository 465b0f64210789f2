"""What a Hugging Face folder says besides weights: tokenizer, chat template, stop tokens, advice on sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.checkpoints.advice import read_advice
from herd.checkpoints.checkpoint import About, Fact, TokenizerSource
from herd.checkpoints.config_reader import shown
from herd.checkpoints.folder import inside, optional_json
from herd.errors import FileProblem

MAX_TEMPLATE_BYTES = 1 << 20
GENERATION, TOKENIZER_CONFIG, SPECIAL_TOKENS = "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"
# Advice that applies only if `do_sample` is true, as transformers reads it; name there -> name here.
SAMPLING = {name: name for name in ("temperature", "top_k", "top_p", "min_p")}
ALWAYS = {"repetition_penalty": "repetition_penalty"}
READ = {"do_sample", "eos_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config", *SAMPLING, *ALWAYS}


def read_about(folder: Path, config: Mapping[str, Any], vocab_size: int, facts: dict[str, Fact]) -> About:
    """The part of a checkpoint that is not about numbers; `config` is config.json."""
    generation = optional_json(folder, GENERATION)
    stop_ids = [*_ids(config, "config.json", vocab_size), *_ids(generation, GENERATION, vocab_size)]
    stop_ids = list(dict.fromkeys(stop_ids))
    if stop_ids:
        facts["stop_ids"] = Fact(tuple(stop_ids), "eos_token_id in config.json and generation_config.json")
    if unused := sorted(set(generation) - READ):
        facts["advice_not_followed"] = Fact(", ".join(unused), GENERATION)
    tokenizer_config = {**optional_json(folder, SPECIAL_TOKENS), **optional_json(folder, TOKENIZER_CONFIG)}
    template = _template(folder, tokenizer_config, facts)
    for key, values in (("eos_token_id", stop_ids), ("bos_token_id", _one_id(config, generation))):
        if values not in ([], None):
            tokenizer_config.setdefault(key, values)
    return About(
        facts=facts,
        tokenizer=_tokenizer(folder, tokenizer_config, facts),
        chat_template=template,
        sampling_defaults=_sampling(generation),
        stop_ids=tuple(stop_ids),
    )


def _ids(values: Mapping[str, Any], where: str, vocab_size: int) -> list[int]:
    """`eos_token_id`: absent, one id, or a list."""
    found = values.get("eos_token_id")
    listed = [] if found is None else found if isinstance(found, list) else [found]
    for each in listed:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < vocab_size:
            raise FileProblem(f"{where}: eos_token_id is {shown(found)}; allowed are tokens from 0 to {vocab_size - 1}.")
    return listed


def _one_id(config: Mapping[str, Any], generation: Mapping[str, Any]) -> int | None:
    found = config.get("bos_token_id", generation.get("bos_token_id"))
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    wanted = {**(SAMPLING if generation.get("do_sample") is True else {}), **ALWAYS}
    return read_advice(generation, wanted, GENERATION)


def _template(folder: Path, tokenizer_config: Mapping[str, Any], facts: dict[str, Fact]) -> str | None:
    """The chat template: a file of its own, or a key of tokenizer_config.json (a text, or a list of named ones)."""
    template: Any = None
    where = ""
    if (folder / "chat_template.jinja").exists():
        where, data = "chat_template.jinja", inside(folder, "chat_template.jinja", folder.name).read_bytes()
        if len(data) > MAX_TEMPLATE_BYTES:
            raise FileProblem(f"{where}: has {len(data)} bytes; at most {MAX_TEMPLATE_BYTES} are allowed.")
        try:
            template = data.decode()
        except UnicodeDecodeError as problem:
            raise FileProblem(f"{where}: is not valid UTF-8 at byte {problem.start}.") from problem
    elif (folder / "chat_template.json").exists():
        where, template = "chat_template.json", optional_json(folder, "chat_template.json").get("chat_template")
    elif "chat_template" in tokenizer_config:
        where, template = TOKENIZER_CONFIG, tokenizer_config["chat_template"]
        if isinstance(template, list):
            named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
            template = named[0].get("template") if named else None
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_BYTES:
        raise FileProblem(f"{where}: chat_template is {shown(template)}; allowed is a text of up to {MAX_TEMPLATE_BYTES} characters.")
    facts["chat_template"] = Fact(f"{len(template)} characters", where)
    return template


def _tokenizer(folder: Path, config: Mapping[str, Any], facts: dict[str, Fact]) -> TokenizerSource | None:
    """tokenizer.json, else tokenizer.model, which is SentencePiece's or a table of tiktoken ranks."""
    if (folder / "tokenizer.json").exists():
        facts["tokenizer"] = Fact("tokenizer.json", "tokenizer.json")
        return TokenizerSource("tokenizer.json", path=inside(folder, "tokenizer.json", folder.name), config=config)
    if not (folder / "tokenizer.model").exists():
        return None
    path = inside(folder, "tokenizer.model", folder.name)
    with path.open("rb") as file:
        first_line = file.read(256).split(b"\n")[0]
    # A rank file is lines of base64, a space and a number; SentencePiece's protobuf begins with byte 10, an empty line.
    kind = "tiktoken" if b" " in first_line and first_line.split(b" ")[-1].strip().isdigit() else "sentencepiece"
    facts["tokenizer"] = Fact(kind, "tokenizer.model")
    return TokenizerSource("tiktoken" if kind == "tiktoken" else "sentencepiece", path=path, config=config)
