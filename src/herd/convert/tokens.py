"""A vocabulary in the files of each layout: carried as it is where that is possible, and made anew where it is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herd.checkpoints.checkpoint import Checkpoint
from herd.errors import FileProblem, UsageError
from herd.text.byte_level import to_bytes
from herd.text.splits import GPT2, SPLITS, Split, Step
from herd.text.tokenizer import read_vocabulary
from herd.text.vocabulary import ByteLevel, Kind, Spaces, Vocabulary

FAMILY_RANKS = (128_000, 200_000)
TIED_RUN_SCORE = -1e9
SPACE = "▁"
ENDS = {"<|eot_id|>": "eot", "<|eot|>": "eot", "<|eom_id|>": "eom", "<|eom|>": "eom"}


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary | None:
    """The vocabulary of a checkpoint, if it has one."""
    source = checkpoint.tokenizer
    if source is None:
        return None
    # Plain lists: what native code makes of a GGUF file's is for tokenizing only, without tokens and merges to write again.
    return read_vocabulary(source.kind, source.path, dict(source.metadata), source.config)


def tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """tokenizer.json for the `tokenizers` library, as the Hugging Face repositories of these models have it."""
    kinds = vocabulary.exceptions
    ids = {token: index for index, token in enumerate(vocabulary.tokens) if kinds.get(index) is not Kind.UNUSED}
    special = [index for index, kind in sorted(kinds.items()) if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)]
    style = _style(vocabulary)
    is_byte_level = isinstance(style, ByteLevel)
    plain = _plain(ids, special) if is_byte_level else ids
    unknown = next((vocabulary.tokens[index] for index, kind in kinds.items() if kind is Kind.UNKNOWN), None)
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocabulary, index) for index in special],
        "normalizer": None if isinstance(style, ByteLevel) else _normalizer(style),
        "pre_tokenizer": _pre_tokenizer(style.split) if isinstance(style, ByteLevel) else None,
        "post_processor": _post_processor(vocabulary),
        "decoder": _decoder(style),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": not is_byte_level,
            "byte_fallback": not is_byte_level,
            "ignore_merges": isinstance(style, ByteLevel) and style.split.ignore_merges,
            "vocab": plain,
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }
    return json.dumps(file, ensure_ascii=False).encode()


def _plain(ids: Mapping[str, int], special: Sequence[int]) -> dict[str, int]:
    """The tokens of `model.vocab`. The library does not read the id of a special token that is not among them, but counts on from
    their number; so those that come after all others are left out, as Llama 3 has it, and otherwise every token is named."""
    held = frozenset(special)
    found = {token: index for token, index in ids.items() if index not in held}
    in_order = sorted(found.values()) == list(range(len(found))) and list(special) == list(range(len(found), len(ids)))
    return found if in_order else dict(ids)


def _style(vocabulary: Vocabulary) -> ByteLevel | Spaces:
    """How the vocabulary writes text. `UsageError` for a way that no language model of the family has."""
    if isinstance(vocabulary.style, ByteLevel | Spaces):
        return vocabulary.style
    raise UsageError(f"{vocabulary.source}: a vocabulary of this kind belongs to classifiers, which are not converted.")


def _added(vocabulary: Vocabulary, index: int) -> dict[str, Any]:
    is_special = vocabulary.exceptions[index] is not Kind.USER_DEFINED
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": vocabulary.tokens[index], **flags, "special": is_special}


def _normalizer(style: Spaces) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, replace] if style.prefix else [replace]
    return {"type": "Sequence", "normalizers": steps}


def _pre_tokenizer(split: Split) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for step in split.steps:
        if step is Step.SINGLE_DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        elif step.value == GPT2:
            steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True})
        else:
            steps.append({"type": "Split", "pattern": {"Regex": step.value}, "behavior": "Isolated", "invert": False})
    if split.steps[-1:] != (Step.GPT2,):
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    if not vocabulary.adds_bos or vocabulary.bos_id is None:
        return None
    text = vocabulary.tokens[vocabulary.bos_id]
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    second = {"SpecialToken": {"id": text, "type_id": 1}}
    known = {text: {"id": text, "ids": [vocabulary.bos_id], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, second, two], "special_tokens": known}


def _decoder(style: ByteLevel | Spaces) -> dict[str, Any]:
    if isinstance(style, ByteLevel):
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if style.prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def tokenizer_config(vocabulary: Vocabulary, template: str | None) -> dict[str, Any]:
    """tokenizer_config.json beside a tokenizer.json of ours."""

    def text(index: int | None) -> str | None:
        return None if index is None else vocabulary.tokens[index]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(vocabulary.bos_id),
        "eos_token": text(vocabulary.eos_ids[0] if vocabulary.eos_ids else None),
        "add_bos_token": vocabulary.adds_bos,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    return {key: value for key, value in config.items() if value is not None}


def ranks_file(vocabulary: Vocabulary) -> bytes | None:
    """Meta's tokenizer.model for the vocabularies of Llama 3 and 4; None for others, which that format cannot tell apart."""
    plain = [token for index, token in enumerate(vocabulary.tokens) if index not in vocabulary.exceptions]
    if not isinstance(vocabulary.style, ByteLevel) or len(plain) not in FAMILY_RANKS or plain != list(vocabulary.tokens[: len(plain)]):
        return None
    return b"".join(base64.b64encode(to_bytes(token)) + b" %d\n" % rank for rank, token in enumerate(plain))


def gguf_tokens(vocabulary: Vocabulary, vocab_size: int, stop_ids: tuple[int, ...], notes: list[str]) -> dict[str, Any]:
    """The tokenizer.* keys, but for the chat template. Ids that only the model has become unused tokens."""
    tokens = [*vocabulary.tokens, *(f"[PAD{index}]" for index in range(len(vocabulary.tokens), vocab_size))]
    kinds = [int(vocabulary.exceptions.get(index, Kind.NORMAL)) for index in range(len(vocabulary.tokens))]
    at, style = "tokenizer.ggml.", _style(vocabulary)
    keys: dict[str, Any] = {f"{at}model": "gpt2" if isinstance(style, ByteLevel) else "llama"}
    keys[f"{at}pre"] = _split_name(style.split) if isinstance(style, ByteLevel) else "default"
    keys |= {f"{at}tokens": tokens, f"{at}token_type": kinds + [int(Kind.UNUSED)] * (len(tokens) - len(kinds))}
    if isinstance(style, ByteLevel):
        keys[f"{at}merges"] = [f"{left} {right}" for left, right in vocabulary.merges]
    else:
        scores = scores_of(vocabulary)
        keys[f"{at}scores"] = scores + [min(scores) - 1 - index for index in range(len(tokens) - len(scores))]
        keys[f"{at}add_space_prefix"] = style.prefix
        if style.prefix and style != Spaces():
            notes.append("GGUF cannot say when no space is put before a text; after special tokens and before spaces one is.")
    if vocabulary.bos_id is not None:
        keys[f"{at}bos_token_id"] = vocabulary.bos_id
    keys[f"{at}add_bos_token"] = vocabulary.adds_bos
    return keys | gguf_ends((*vocabulary.eos_ids, *stop_ids), vocabulary.tokens, notes)


def _split_name(split: Split) -> str:
    known = SPLITS.get(split.name)
    if known is None or (known.steps, known.ignore_merges) != (split.steps, split.ignore_merges):
        raise FileProblem(
            f"GGUF has no name for the way in which this tokenizer splits text ({split.name}, ignore_merges {split.ignore_merges})."
        )
    return split.name


def gguf_ends(ids: Iterable[int], tokens: Sequence[str], notes: list[str]) -> dict[str, Any]:
    """The keys of tokens that end an answer. GGUF has room for three: of text, of turn, of message."""
    found: dict[str, int] = {}
    for index in dict.fromkeys(ids):
        text = tokens[index] if index < len(tokens) else ""
        free = [name for name in (ENDS.get(text, "eos"), "eos", "eot", "eom") if name not in found]
        if free:
            found[free[0]] = index
        else:
            notes.append(f"GGUF has room for three tokens that end an answer; {text!r} ({index}) was left out.")
    if found and "eos" not in found:
        found["eos"] = next(iter(found.values()))
    return {f"tokenizer.ggml.{name}_token_id": index for name, index in found.items()}


def scores_of(vocabulary: Vocabulary) -> list[float]:
    """Scores from which the same merges follow: the sooner a piece may be made, the higher. Runs of spaces that Llama 2 scores
    alike keep one score."""
    order: dict[str, int] = {}
    for left, right in vocabulary.merges:
        order.setdefault(left + right, len(order))
    plain = {token for index, token in enumerate(vocabulary.tokens) if index not in vocabulary.exceptions}
    runs = {token for token in plain if len(token) > 1 and not token.strip(SPACE)}
    tied = runs if _are_tied(runs, order) else set()
    scores: list[float] = []
    for index, token in enumerate(vocabulary.tokens):
        if token not in plain:
            scores.append(0.0)
        elif token in tied:
            scores.append(TIED_RUN_SCORE)
        else:
            scores.append(-float(order.get(token, len(order) + index)))
    return scores


def _are_tied(runs: set[str], order: Mapping[str, int]) -> bool:
    """Whether runs of spaces come last, doublings first: the order that tied scores are read into."""
    ordered = sorted(runs, key=lambda run: order.get(run, len(order)))
    doublings = [SPACE * (1 << power) for power in range(1, len(ordered).bit_length() + 1)]
    return len(runs) > 2 and ordered[: len(doublings)] == doublings and set(list(order)[-len(runs) :]) == runs
