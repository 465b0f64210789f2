"""Vocabularies in the metadata of GGUF files.

    tokenizer.ggml.model   "gpt2": byte-level BPE, with `merges` and the split that `pre` names
                           "llama": SentencePiece-style BPE, with `scores` and byte tokens

Every `tokenizer.*` key is used, or on the list of harmless ones below, or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from herd.errors import FileProblem
from herd.text.byte_level import to_bytes
from herd.text.native_tokens import NativeTokens, read_native
from herd.text.scores import check_scores, merges_from_scores
from herd.text.splits import SPLITS, Split, split_by_name
from herd.text.vocabulary import (
    TOKENS_MAX,
    ByteLevel,
    Kind,
    Spaces,
    Vocabulary,
    check_alphabet,
    check_byte_tokens,
    check_tokens,
)

if TYPE_CHECKING:
    from herd import _core

_AT = "tokenizer.ggml."
_SOURCE = "the GGUF vocabulary"
_USED = frozenset(
    _AT + name
    for name in (
        *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix"),
        *("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id"),
        *("remove_extra_whitespaces", "precompiled_charsmap"),
    )
)
_HARMLESS = {
    "add_eos_token": "a prompt is continued, so no end is ever put after it",
    "padding_token_id": "nothing is padded here",
    "seperator_token_id": "for encoders",
    "separator_token_id": "for encoders",
    "cls_token_id": "for encoders",
    "mask_token_id": "for encoders",
    "add_sep_token": "for encoders",
    "token_type_count": "for encoders",
    "prefix_token_id": "infilling asks for its tokens by name",
    "suffix_token_id": "infilling asks for its tokens by name",
    "middle_token_id": "infilling asks for its tokens by name",
    "fim_pre_token_id": "infilling asks for its tokens by name",
    "fim_suf_token_id": "infilling asks for its tokens by name",
    "fim_mid_token_id": "infilling asks for its tokens by name",
    "fim_pad_token_id": "infilling asks for its tokens by name",
    "fim_rep_token_id": "infilling asks for its tokens by name",
    "fim_sep_token_id": "infilling asks for its tokens by name",
    "added_tokens": "the same tokens are in the main list",
}
_OTHER_HARMLESS = ("tokenizer.chat_template", "tokenizer.huggingface.json", "tokenizer.rwkv.world")


def read_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary from a file's `tokenizer.*` keys; other keys of the file are not looked at."""
    _check_keys(metadata)
    model = _text(metadata, "model")
    native = read_native(metadata) if model == "gpt2" else None
    if native is not None:
        named = {index: Kind(kind) for index, kind in native.exceptions}
        return _byte_level(metadata, NativeTokens(native), named, (), native)
    tokens = _tokens(metadata)
    exceptions = _exceptions(metadata, len(tokens))
    if model == "gpt2":
        merges = _merges(_list(metadata, "merges"))
        check_alphabet(tokens, exceptions, _SOURCE)
        return _byte_level(metadata, tokens, exceptions, merges)
    if model == "llama":
        return _sentencepiece(metadata, tokens, exceptions)
    raise FileProblem(f"tokenizer.ggml.model is {model!r}; known are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece BPE).")


def _byte_level(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    exceptions: Mapping[int, Kind],
    merges: Sequence[tuple[str, str]],
    native: _core.Vocabulary | None = None,
) -> Vocabulary:
    split, how = _split(metadata, tokens, exceptions)
    return Vocabulary(
        tokens=tokens,
        merges=merges,
        style=ByteLevel(split),
        exceptions=exceptions,
        bos_id=_id(metadata, "bos_token_id"),
        adds_bos=_flag(metadata, "add_bos_token", split.adds_bos),
        eos_ids=_ends(metadata),
        source=_SOURCE,
        extra_description=how,
        native=native,
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], exceptions: dict[int, Kind]) -> Vocabulary:
    if _flag(metadata, "remove_extra_whitespaces", False):
        raise FileProblem("tokenizer.ggml.remove_extra_whitespaces is true; Llama vocabularies keep every space, so it is not supported.")
    if len(metadata.get(_AT + "precompiled_charsmap", ())) > 0:
        raise FileProblem("tokenizer.ggml.precompiled_charsmap is set; Llama vocabularies do not normalise text, so it is not supported.")
    pre = metadata.get(_AT + "pre", "default")
    if pre not in ("default", "llama-spm"):
        raise FileProblem(f"tokenizer.ggml.pre is {pre!r} beside tokenizer.ggml.model 'llama'; expected 'default' or no such key.")
    scores = _list(metadata, "scores")
    check_scores(scores, len(tokens), _SOURCE)
    _mark_by_text(metadata, tokens, exceptions)
    check_byte_tokens(tokens, exceptions, _SOURCE)
    check_tokens(tokens, _SOURCE)
    return Vocabulary(
        tokens=tokens,
        merges=merges_from_scores(tokens, scores, exceptions, _SOURCE),
        style=Spaces(prefix=_flag(metadata, "add_space_prefix", True)),
        exceptions=exceptions,
        bos_id=_id(metadata, "bos_token_id"),
        adds_bos=_flag(metadata, "add_bos_token", True),
        eos_ids=_ends(metadata),
        source=_SOURCE,
    )


def _mark_by_text(metadata: Mapping[str, Any], tokens: list[str], exceptions: dict[int, Kind]) -> None:
    """Files without `token_type` leave it to the usual names."""
    if _AT + "token_type" in metadata:
        return
    for index, token in enumerate(tokens[:259]):
        if token in ("<s>", "</s>"):
            exceptions[index] = Kind.CONTROL
        elif token == "<unk>":
            exceptions[index] = Kind.UNKNOWN
        elif token.startswith("<0x"):
            exceptions[index] = Kind.BYTE


def _split(metadata: Mapping[str, Any], tokens: Sequence[str], exceptions: Mapping[int, Kind]) -> tuple[Split, str]:
    """How text is split, and how that is known. Files before 2024 do not say; well-known vocabularies tell by content."""
    name = metadata.get(_AT + "pre")
    if name is not None and name != "default":
        return split_by_name(str(name)), ""
    recognised = _recognise(tokens, exceptions)
    if recognised is None:
        raise FileProblem(
            f"tokenizer.ggml.pre is {'missing' if name is None else repr(name)}, so how text is split is unknown, and the vocabulary"
            " is none that is recognised by its content (Llama 3, Llama 4, SmolLM2)."
            " Convert the model again with a newer tool, which writes the key."
        )
    return SPLITS[recognised], f"tokenizer.ggml.pre does not say how; recognised as {recognised} by content"


def _recognise(tokens: Sequence[str], exceptions: Mapping[int, Kind]) -> str | None:
    # The number of plain tokens and two of them, far apart: no other vocabulary has these.
    plain = len(tokens) - len(exceptions)
    if plain == 128_000 and to_bytes(tokens[1917]) == b" world" and to_bytes(tokens[101798]) == " Việt".encode():
        return "llama-bpe"
    if plain == 200_000 and to_bytes(tokens[3817]) == b" world" and to_bytes(tokens[140680]) == b"assistant":
        return "llama4"
    if len(tokens) == 49_152 and tokens[1] == "<|im_start|>" and tokens[3] == "<repo_name>" and tokens[17] == "!":
        return "smollm"
    return None


def _check_keys(metadata: Mapping[str, Any]) -> None:
    for key in metadata:
        if not key.startswith("tokenizer.") or key in _USED or key.startswith(_OTHER_HARMLESS):
            continue
        if key.removeprefix(_AT) not in _HARMLESS:
            raise FileProblem(f"the file has {key}, which is not known here; it could change what text means, so it is not ignored.")


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = list(_list(metadata, "tokens"))
    if len(tokens) > TOKENS_MAX:
        raise FileProblem(f"tokenizer.ggml.tokens has {len(tokens)} entries; at most {TOKENS_MAX} are read.")
    if not all(type(token) is str and token for token in tokens):
        index = next(i for i, token in enumerate(tokens) if type(token) is not str or not token)
        raise FileProblem(f"tokenizer.ggml.tokens[{index}] is {tokens[index]!r}; expected a text that is not empty.")
    return tokens


def _exceptions(metadata: Mapping[str, Any], count: int) -> dict[int, Kind]:
    if _AT + "token_type" not in metadata:
        return {}
    types = _list(metadata, "token_type")
    if len(types) != count:
        raise FileProblem(f"tokenizer.ggml.token_type has {len(types)} entries for {count} tokens.")
    exceptions = {}
    for index, value in enumerate(types):
        if value != 1:
            try:
                exceptions[index] = Kind(value)
            except ValueError:
                raise FileProblem(f"tokenizer.ggml.token_type[{index}] is {value}; expected 1 to 6.") from None
    return exceptions


def _merges(texts: Sequence[Any]) -> list[tuple[str, str]]:
    # Checked in bulk: the list is as long as the vocabulary, and starting up should not wait for it.
    if all(type(text) is str for text in texts):
        merges = [tuple(text.split(" ")) for text in texts]
        if set(map(len, merges)) <= {2}:
            return cast(list[tuple[str, str]], merges)
    index = next(i for i, text in enumerate(texts) if type(text) is not str or text.count(" ") != 1)
    raise FileProblem(f"tokenizer.ggml.merges[{index}] is {texts[index]!r}; expected two tokens with a space between.")


def _ends(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    found = (_id(metadata, f"{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _list(metadata: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A list of the file as plain Python values. Arrays (numpy's and others') are converted at once."""
    value: Any = metadata.get(_AT + name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise FileProblem(f"{_AT}{name} is {'missing' if value is None else type(value).__name__}; expected a list.")
    return value


def _text(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(_AT + name)
    if not isinstance(value, str):
        raise FileProblem(f"{_AT}{name} is {'missing' if value is None else repr(value)}; expected a text.")
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_AT + name, default)
    if value not in (True, False):
        raise FileProblem(f"{_AT}{name} is {value!r}; expected true or false.")
    return bool(value)


def _id(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(_AT + name)
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise FileProblem(f"{_AT}{name} is {value!r}; expected a token id.") from None
