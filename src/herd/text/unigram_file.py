"""Unigram vocabularies in `tokenizer.json`: those of the DeBERTa models under Prompt Guard.

SentencePiece's other way to tokenise: every piece has a score, and a text becomes the pieces whose scores sum highest. As with the
other kinds the file's pipeline is not run as it is: the steps that these vocabularies use are taken, others refused by name, and
control tokens are taken out of the library's hands, so that no text becomes one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from herd.errors import FileProblem
from herd.text.vocabulary import TOKENS_MAX, Kind, Unigram, Vocabulary

SPACE = "▁"
_Json = Mapping[str, Any]
_MODEL = frozenset({"type", "unk_id", "vocab", "byte_fallback"})
_PLAIN_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt"})
_REPLACED = (" {2,}", r"\s{2,}|[\n\r\t]")
"""What these files replace by a space; linear whatever the text."""
_PUNCTUATION = frozenset({"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"})
_CHARSMAP_MAX = 4 << 20


def read_unigram(
    file: _Json, added: Mapping[int, tuple[str, Kind]], named: Mapping[str, int | None], ends: tuple[int, ...], source: str
) -> Vocabulary:
    """The vocabulary. added: control and user-defined tokens by id; named: ids of `bos` and whether it is put first (`adds_bos`)."""
    model = file["model"]
    unknown = sorted(set(model) - _MODEL)
    if unknown or model.get("byte_fallback"):
        raise FileProblem(f"{source}: model has {', '.join(unknown) or 'byte_fallback'}, which no vocabulary of the family has.")
    pieces = _pieces(model.get("vocab"), source)
    tokens = [text for text, _ in pieces]
    for token in sorted(added):
        text = added[token][0]
        if token == len(tokens):
            tokens.append(text)
        elif token > len(tokens) or tokens[token] != text:
            raise FileProblem(
                f"{source}: the added token {token} is {text!r:.80}; the vocabulary has {len(tokens)} tokens, and another one there."
            )
    exceptions = {token: kind for token, (_, kind) in added.items()}
    unk = model.get("unk_id")
    if type(unk) is not int or not 0 <= unk < len(pieces):
        raise FileProblem(f"{source}: model.unk_id is {unk!r:.80}; expected the id of one of the {len(pieces)} pieces.")
    exceptions[unk] = Kind.UNKNOWN
    return Vocabulary(
        tokens=tokens,
        merges=(),
        style=Unigram(_library(file, pieces, exceptions, unk, source)),
        exceptions=exceptions,
        bos_id=named["bos"],
        adds_bos=bool(named["adds_bos"]),
        eos_ids=ends,
        source=source,
    )


def _pieces(value: Any, source: str) -> list[tuple[str, float]]:
    if not isinstance(value, list) or not 0 < len(value) <= TOKENS_MAX:
        raise FileProblem(f"{source}: model.vocab is {type(value).__name__}; expected a list of up to {TOKENS_MAX} pieces with scores.")
    pieces: list[tuple[str, float]] = []
    for index, entry in enumerate(value):
        match entry:
            case [str() as text, int() | float() as score] if math.isfinite(score) and not isinstance(score, bool):
                pieces.append((text, float(score)))
            case _:
                raise FileProblem(f"{source}: model.vocab[{index}] is {entry!r:.80}; expected a piece and its score.")
    return pieces


def _library(file: _Json, pieces: list[tuple[str, float]], exceptions: Mapping[int, Kind], unk: int, source: str) -> str:
    """A file for the `tokenizers` library with the plain part of the pipeline.

    Pieces that no text may become are written with spaces inside, which no text has any more when pieces are looked for.
    """
    vocab = [[f" {index} " if index in exceptions else text, score] for index, (text, score) in enumerate(pieces)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": _whole("normalizers", list(_normalizers(file.get("normalizer"), source))),
            "pre_tokenizer": _whole("pretokenizers", list(_cutters(file.get("pre_tokenizer"), source))),
            "post_processor": None,
            "decoder": None,
            "model": {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": False},
        }
    )


def _whole(name: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", name: steps} if steps else None


def _steps(value: Any, field: str, name: str, source: str) -> Iterator[dict[str, Any]]:
    pending = [] if value is None else [value]
    while pending:
        step = pending.pop()
        if not isinstance(step, dict):
            raise FileProblem(f"{source}: {field} is {type(step).__name__}; expected an object.")
        if step.get("type") != "Sequence":
            yield step
        elif isinstance(step.get(name), list):
            pending.extend(reversed(step[name]))
        else:
            raise FileProblem(f"{source}: {field}.{name} is {type(step.get(name)).__name__}; expected a list.")


def _normalizers(value: Any, source: str) -> Iterator[dict[str, Any]]:
    for step in _steps(value, "normalizer", "normalizers", source):
        kind, text = step.get("type"), step.get("precompiled_charsmap")
        if kind in _PLAIN_NORMALIZERS:
            yield {"type": kind}
        elif kind == "Strip":
            yield {"type": kind, "strip_left": bool(step.get("strip_left")), "strip_right": bool(step.get("strip_right"))}
        elif kind == "Precompiled" and isinstance(text, str) and len(text) <= _CHARSMAP_MAX:
            yield {"type": kind, "precompiled_charsmap": text}
        elif kind == "Replace" and step.get("pattern") in [{"Regex": known} for known in _REPLACED] and step.get("content") in (" ", SPACE):
            yield {"type": kind, "pattern": step["pattern"], "content": step["content"]}
        else:
            raise FileProblem(f"{source}: the normalizer has the step {json.dumps(step)[:200]}, which is not one of those known here.")


def _cutters(value: Any, source: str) -> Iterator[dict[str, Any]]:
    found = False
    for step in _steps(value, "pre_tokenizer", "pretokenizers", source):
        kind = step.get("type")
        if kind == "Metaspace" and step.get("replacement") == SPACE and step.get("prepend_scheme", "always") == "always":
            found = True
            yield {"type": kind, "replacement": SPACE, "prepend_scheme": "always", "split": bool(step.get("split", True))}
        elif kind == "Punctuation" and step.get("behavior") in _PUNCTUATION:
            yield {"type": kind, "behavior": step["behavior"]}
        elif kind == "WhitespaceSplit":
            yield {"type": kind}
        else:
            raise FileProblem(f"{source}: the pre_tokenizer has the step {json.dumps(step)[:200]}, which is not one of those known here.")
    if not found:
        raise FileProblem(f"{source}: the pre_tokenizer does not write spaces as {SPACE}, as Unigram vocabularies of the family do.")
