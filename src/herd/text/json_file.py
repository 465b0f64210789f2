"""Hugging Face's `tokenizer.json`: byte-level BPE (Llama 3, 4, SmolLM2) and SentencePiece-style BPE (Llama 1, 2). Unigram
vocabularies (Prompt Guard) are handed to `unigram_file.py`.

The file describes a pipeline. It is not run as it is: the parts that Llama vocabularies use are read, others are refused by
name. So a file cannot bring a regular expression of its own, nor rewrite text, nor make control tokens of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from herd.errors import FileProblem
from herd.files.json import parse_json
from herd.text.splits import LLAMA3_SPLIT, LLAMA4_SPLIT, SPLITS, Split, Step
from herd.text.vocabulary import TOKENS_MAX, ByteLevel, Kind, Spaces, Vocabulary, byte_of, check_alphabet

_SPACE = "▁"
_TOP = frozenset({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"})
_MODEL = frozenset(
    {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"}
    | {"vocab", "merges"}
)
_Json = Mapping[str, Any]


def read_tokenizer_json(data: bytes, config: _Json, source: str) -> Vocabulary:
    """The vocabulary in `data`. config: `tokenizer_config.json`, for which tokens are BOS and EOS.

    The `decoder` is not looked at: what a token's bytes are follows from the style. Truncation and padding do not concern us.
    """
    file = _parse(data, source)
    model = _object(file.get("model"), "model", source)
    added = _added(file, source, strips=model.get("type") == "Unigram")
    if model.get("type") == "Unigram":
        return _unigram(file, config, added, source)
    _check_model(file, model, source)
    tokens, exceptions = _tokens(model, added, source)
    style = _style(file, model, source)
    if isinstance(style, ByteLevel):
        check_alphabet(tokens, exceptions, source)
    else:
        exceptions.update((index, Kind.BYTE) for index, token in enumerate(tokens) if byte_of(token) is not None)
        unknown = model.get("unk_token")
        exceptions.update((index, Kind.UNKNOWN) for index, token in enumerate(tokens[:256]) if token == unknown)
    ids = {token: index for index, token in enumerate(tokens)}
    bos = _named(config, "bos_token", ids)
    first = _first_added(file.get("post_processor"), source)
    return Vocabulary(
        tokens=tokens,
        merges=list(_merges(model, source)),
        style=style,
        exceptions=exceptions,
        bos_id=ids.get(first) if bos is None and first else bos,
        adds_bos=bool(config.get("add_bos_token", first is not None)),
        eos_ids=_ends(config, ids, source),
        source=source,
    )


def _unigram(file: _Json, config: _Json, added: Mapping[int, tuple[str, Kind]], source: str) -> Vocabulary:
    from herd.text.unigram_file import read_unigram

    ids = {text: token for token, (text, _) in added.items()}
    first = _first_added(file.get("post_processor"), source)
    bos = _named(config, "bos_token", ids)
    named = {"bos": ids.get(first) if bos is None and first else bos, "adds_bos": int(first is not None)}
    return read_unigram(file, added, named, _ends(config, ids, source), source)


def _parse(data: bytes, source: str) -> _Json:
    file = parse_json(data, source)
    unknown = sorted(set(file) - _TOP)
    if unknown:
        raise FileProblem(f"{source}: {', '.join(unknown)} is not known in a tokenizer.json.")
    return file


def _object(value: Any, name: str, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FileProblem(f"{source}: {name} is {type(value).__name__}; expected an object.")
    return value


def _objects(value: Any, name: str, source: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise FileProblem(f"{source}: {name} is {type(value).__name__}; expected a list of objects.")
    return [_object(entry, f"{name}[{index}]", source) for index, entry in enumerate(value)]


def _check_model(file: _Json, model: _Json, source: str) -> None:
    unknown = sorted(set(model) - _MODEL)
    if unknown or model.get("type", "BPE") != "BPE":
        raise FileProblem(f"{source}: the model is {model.get('type')!r} with {', '.join(unknown) or 'usual fields'}; only BPE is known.")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise FileProblem(f"{source}: model.{name} is {model[name]!r}; no Llama vocabulary has it, and it is not supported.")


def _added(file: _Json, source: str, *, strips: bool) -> dict[int, tuple[str, Kind]]:
    """strips: control tokens may take the space beside them along, where texts never become control tokens."""
    added: dict[int, tuple[str, Kind]] = {}
    entries = file.get("added_tokens")
    for index, entry in enumerate(_objects([] if entries is None else entries, "added_tokens", source)):
        at = f"added_tokens[{index}]"
        token, text = entry.get("id"), entry.get("content")
        if type(token) is not int or not 0 <= token < TOKENS_MAX or not isinstance(text, str) or not text:
            raise FileProblem(f"{source}: {at} has id {token!r} and content {text!r}; expected an id below {TOKENS_MAX} and a text.")
        for flag in ("single_word", *(() if strips else ("lstrip", "rstrip"))):
            if entry.get(flag):
                raise FileProblem(f"{source}: {at} ({text}) has {flag}, which no Llama vocabulary has; it is not supported.")
        if token in added:
            raise FileProblem(f"{source}: {at} has id {token}, which {added[token][0]!r} has already.")
        added[token] = (text, Kind.CONTROL if entry.get("special") else Kind.USER_DEFINED)
    return added


def _tokens(model: _Json, added: Mapping[int, tuple[str, Kind]], source: str) -> tuple[list[str], dict[int, Kind]]:
    vocab = _object(model.get("vocab"), "model.vocab", source)
    if not all(type(token) is int for token in vocab.values()):
        raise FileProblem(f"{source}: model.vocab has an id that is no whole number.")
    by_id = {token: text for text, token in vocab.items()}
    if len(by_id) != len(vocab):
        raise FileProblem(f"{source}: model.vocab gives the same id to two tokens ({len(vocab)} tokens, {len(by_id)} ids).")
    for token, (text, _) in added.items():
        if by_id.setdefault(token, text) != text:
            raise FileProblem(f"{source}: id {token} is {by_id[token]!r} in model.vocab and {text!r} in added_tokens.")
    count = len(by_id)
    if by_id and (min(by_id), max(by_id)) != (0, count - 1):
        hole = next(token for token in range(count) if token not in by_id)
        raise FileProblem(f"{source}: the ids have a hole at {hole}; {count} tokens must have the ids 0 to {count - 1}.")
    return [by_id[token] for token in range(count)], {token: kind for token, (_, kind) in added.items()}


def _merges(model: _Json, source: str) -> Iterator[tuple[str, str]]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise FileProblem(f"{source}: model.merges is {type(merges).__name__}; expected a list.")
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise FileProblem(f"{source}: model.merges[{index}] is {merge!r}; expected two tokens.")
        yield pair[0], pair[1]


def _style(file: _Json, model: _Json, source: str) -> ByteLevel | Spaces:
    normalizer = list(_flat(file.get("normalizer"), "normalizer", "normalizers", source))
    cutters = list(_flat(file.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", source))
    if any(step.get("type") == "ByteLevel" for step in cutters):
        if normalizer:
            raise FileProblem(f"{source}: the normalizer is {_types(normalizer)}; byte-level Llama vocabularies have none.")
        return ByteLevel(_split(cutters, bool(model.get("ignore_merges")), source))
    if not model.get("byte_fallback"):
        raise FileProblem(f"{source}: neither byte-level ({_types(cutters)}) nor with byte fallback, so some text could not be written.")
    return _spaces(normalizer, cutters, source)


def _flat(value: Any, field: str, name: str, source: str) -> Iterator[_Json]:
    """The steps of a possibly nested sequence, whose list is called `name`; none if the file's `field` is null."""
    pending = [] if value is None else [_object(value, field, source)]
    while pending:
        step = pending.pop()
        if step.get("type") == "Sequence":
            pending.extend(reversed(_objects(step.get(name), f"{field}.{name}", source)))
        else:
            yield step


def _types(steps: list[_Json]) -> str:
    return ", ".join(str(step.get("type")) for step in steps) or "nothing"


def _split(cutters: list[_Json], ignore_merges: bool, source: str) -> Split:
    steps = tuple(found for cutter in cutters if (found := _step(cutter, source)) is not None)
    if steps in ((Step.LLAMA3,), (Step.O200K,)):
        known = LLAMA3_SPLIT if steps == (Step.LLAMA3,) else LLAMA4_SPLIT
        return Split(known.name, steps, ignore_merges=ignore_merges, slices=True)
    name = next((split.name for split in SPLITS.values() if split.steps == steps), "+".join(step.name for step in steps))
    if not steps:
        raise FileProblem(f"{source}: the pre_tokenizer does not split text; byte-level Llama vocabularies do.")
    return Split(name, steps, ignore_merges=ignore_merges)


def _step(cutter: _Json, source: str) -> Step | None:
    """One known way of cutting; None for the byte alphabet alone."""
    kind = cutter.get("type")
    if kind == "Digits" and cutter.get("individual_digits"):
        return Step.SINGLE_DIGITS
    if kind == "ByteLevel" and not cutter.get("add_prefix_space"):
        return Step.GPT2 if cutter.get("use_regex", True) else None
    if kind == "Split" and cutter.get("behavior") == "Isolated" and not cutter.get("invert"):
        pattern = cutter.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        for step in Step:
            if step.value == expression:
                return step
    raise FileProblem(f"{source}: the pre_tokenizer has the step {json.dumps(cutter)[:200]}, which is not one of those known here.")


def _spaces(normalizer: list[_Json], cutters: list[_Json], source: str) -> Spaces:
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not cutters and normalizer in ([prepend, replace], [replace]):
        return Spaces(prefix=len(normalizer) == 2)
    if not normalizer and len(cutters) == 1 and cutters[0].get("type") == "Metaspace" and not cutters[0].get("split", True):
        scheme = cutters[0].get("prepend_scheme", "always")
        if cutters[0].get("replacement") == _SPACE and scheme in ("always", "first", "never"):
            return Spaces(prefix=scheme != "never", prefix_after_specials=scheme == "always", prefix_before_space=False)
    raise FileProblem(
        f"{source}: spaces are written by {_types(normalizer)} and {_types(cutters)}, not in one of the ways of Llama vocabularies"
        " (Prepend and Replace, or Metaspace without splitting)."
    )


def _first_added(processor: Any, source: str) -> str | None:
    """The special token that the post-processor puts before a text, if any."""
    found: list[str] = []
    for step in _flat(processor, "post_processor", "processors", source):
        kind = step.get("type")
        if kind == "TemplateProcessing":
            template = _objects(step.get("single"), "post_processor.single", source)
            if template and "SpecialToken" in template[0]:
                special = _object(template[0]["SpecialToken"], "post_processor.single[0].SpecialToken", source)
                if not isinstance(special.get("id"), str):
                    raise FileProblem(f"{source}: the first token of post_processor is {special.get('id')!r:.80}; expected its text.")
                found.append(special["id"])
        elif kind != "ByteLevel":  # That one moves offsets only.
            raise FileProblem(f"{source}: the post_processor has a step {kind!r:.80}; known are TemplateProcessing and ByteLevel.")
    return found[0] if found else None


def _named(config: _Json, name: str, ids: Mapping[str, int]) -> int | None:
    value = config.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return ids.get(text) if isinstance(text, str) else None


def _ends(config: _Json, ids: Mapping[str, int], source: str) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    numbers = () if value is None else value if isinstance(value, list | tuple) else (value,)
    if not all(type(number) is int for number in numbers):
        raise FileProblem(f"{source}: its configuration gives eos_token_id as {value!r:.80}; expected a token id or a list of them.")
    named = _named(config, "eos_token", ids)
    return tuple(dict.fromkeys((*(() if named is None else (named,)), *numbers)))
