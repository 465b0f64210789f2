"""Words to tokens and back.

    encode   text -> ids. Text never becomes a control token, whatever it says, unless `specials=True`
    decode   ids -> text. Never fails for ids of the model; bytes that are no UTF-8 become U+FFFD
    stream   ids -> text as they arrive, in whole characters

Plain text is merged by what `merging.py` makes, which knows no control tokens: these are found, and bytes of tokens are told, by
the table here. Files are read by the `*_file` modules; `load_tokenizer` picks one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex, final

from herd.errors import FileProblem, UsageError
from herd.files.text import read_bytes
from herd.text import byte_level
from herd.text.merging import SPACE, make_merger
from herd.text.slices import chunks, slices
from herd.text.stream import StreamDecoder
from herd.text.vocabulary import BYTES_MAX, ByteLevel, Kind, Spaces, Unigram, Vocabulary, byte_of

_WORD_START_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")
_UNPRODUCED = frozenset({Kind.CONTROL, Kind.UNKNOWN, Kind.UNUSED})
_ENDS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<step>")
)


@final
class Tokenizer:
    """One model's vocabulary. Immutable, safe to share between threads."""

    vocab_size: int
    """Tokens of the vocabulary. The model may have more rows, which mean nothing (padding to a round number)."""
    bos_id: int | None
    adds_bos: bool
    """Whether `encode(bos=None)` starts with the BOS token, as the model was trained."""
    eos_ids: tuple[int, ...]
    """The ends that the file declares."""
    stop_ids: frozenset[int]
    """`eos_ids` and every control token that ends a turn or a text by its name."""
    special_ids: Mapping[str, int]
    """Control tokens by their text."""
    description: str

    def __init__(self, vocabulary: Vocabulary, *, model_vocab: int | None = None) -> None:
        """model_vocab: how many ids the model knows, if that is known; those that are no tokens stand for no text. `FileProblem`
        if the vocabulary can produce an id that the model lacks.
        """
        _check_model_knows(vocabulary, model_vocab)
        self._tokens = vocabulary.tokens
        self._style = vocabulary.style
        self._exceptions = vocabulary.exceptions
        self._joins_words = any(_WORD_START_INSIDE.search(token) for token in self._tokens) if isinstance(self._style, Spaces) else False
        self._merger = make_merger(vocabulary, joins_words=self._joins_words)
        self.vocab_size = len(vocabulary.tokens)
        self._num_ids = max(self.vocab_size, model_vocab or 0)
        self.bos_id, self.adds_bos = vocabulary.bos_id, vocabulary.adds_bos and vocabulary.bos_id is not None
        self.eos_ids = vocabulary.eos_ids
        named = {kind: {self._tokens[i]: i for i, k in self._exceptions.items() if k is kind} for kind in Kind}
        self.special_ids = MappingProxyType(named[Kind.CONTROL] | named[Kind.UNKNOWN])
        self._user_defined = named[Kind.USER_DEFINED]
        self._find_specials = _Finder(self.special_ids)
        self._find_user_defined = _Finder(self._user_defined)
        self.stop_ids = frozenset(self.eos_ids) | {i for text, i in self.special_ids.items() if text in _ENDS}
        self.description = _describe(vocabulary)
        self._bytes_of: dict[int, bytes] = {}  # of tokens that were asked for: answers ask for each of theirs, again and again
        self._shown_bytes_of: dict[int, bytes] = {}

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        """Token ids of `text`.

        bos: start with the BOS token; None: as the model was trained. specials: control tokens written in the text become
        control tokens; for trusted text only. An unpaired surrogate becomes U+FFFD. `UsageError` if it is no text.
        """
        text = _whole_characters(text)
        if bos and self.bos_id is None:
            raise UsageError("bos=True, but this vocabulary has no BOS token.")
        ids = [self.bos_id] if bos or (bos is None and self.adds_bos) else []
        parts = self._find_specials.parts(text) if specials else (text,)
        return [i for i in ids if i is not None] + self.encode_parts(parts)

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of plain text that stands in the middle of a text: nothing is put before it."""
        text = _whole_characters(text)
        if not isinstance(self._style, Spaces):
            return self.encode_parts([text])
        ids: list[int] = []
        for part in self._find_user_defined.parts(text):
            ids += [part] if isinstance(part, int) else self._spaced(part, prefix=False)
        return ids

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Token ids of a prompt whose control tokens are given as ids and whose texts are only ever text.

        Neighbouring texts are one text. No BOS is added. `UsageError` names an id outside the vocabulary, and what is neither text nor id.
        """
        ids: list[int] = []
        after_special = False
        for part in _joined(_items(parts, "parts", "texts and token ids")):
            if isinstance(part, str):
                self._append_text(ids, _whole_characters(part), at_start=not after_special)
                after_special = False
            else:
                ids.append(self._checked_id(part, self.vocab_size))
                after_special = True
        return ids

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """The text of `ids`. `UsageError` names an id that neither vocabulary nor model has."""
        if isinstance(ids, (str, bytes)):
            raise UsageError(f"ids is {ids!r:.80} ({type(ids).__name__}); expected token ids, which are whole numbers.")
        data = b"".join(self.token_bytes(i) for i in _items(ids, "ids", "token ids") if not (skip_specials and self.is_special(i)))
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._adds_space else text

    def stream(self, keep: Collection[int] = ()) -> StreamDecoder:
        """A decoder for tokens as they are generated; control tokens give no text, but for those in `keep` their names."""
        shown = frozenset(keep)
        if not shown:
            return StreamDecoder(self._shown_bytes, drop_leading_space=self._adds_space)
        return StreamDecoder(lambda i: self.token_bytes(i) if i in shown else self._shown_bytes(i), drop_leading_space=self._adds_space)

    def _shown_bytes(self, token: int) -> bytes:
        """The bytes of a token in a text; control tokens have none."""
        found = self._shown_bytes_of.get(token) if type(token) is int else None
        if found is None:
            found = b"" if self.is_special(token) else self.token_bytes(token)
            self._shown_bytes_of[int(token)] = found
        return found

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for: of a control token its name; none of an unused one or one that only the model has."""
        found = self._bytes_of.get(token) if type(token) is int else None
        if found is None:
            token = self._checked_id(token, self._num_ids)
            found = self._bytes_of[token] = self._spelled(token)
        return found

    def _spelled(self, token: int) -> bytes:
        if token >= self.vocab_size:
            return b""
        text = self._tokens[token]
        kind = self._exceptions.get(token, Kind.NORMAL)
        if kind is Kind.UNUSED:
            return b""
        if kind is Kind.BYTE:
            byte = byte_of(text)
            assert byte is not None
            return bytes((byte,))
        if isinstance(self._style, Spaces | Unigram):
            return (text if kind in _UNPRODUCED else text.replace(SPACE, " ")).encode()
        return byte_level.to_bytes(text) if kind is Kind.NORMAL else text.encode()

    def split_specials(self, text: str) -> Iterator[str | int]:
        """Trusted text as parts for `encode_parts`: the texts between control tokens, and the ids of these."""
        return self._find_specials.parts(_whole_characters(text))

    def id_of(self, token: str) -> int | None:
        """The id of the token that is written so in the vocabulary, whatever kind it is of; None if there is none."""
        found = self.special_ids.get(token, self._user_defined.get(token))
        return found if found is not None else next((index for index, text in enumerate(self._tokens) if text == token), None)

    def special_text(self, token: int) -> str:
        """How a control token is written."""
        return self._tokens[self._checked_id(token, self.vocab_size)]

    def is_special(self, token: int) -> bool:
        """Whether a token is a control token: no text, and never made from text. `UsageError` if it is none at all."""
        return self._exceptions.get(self._checked_id(token, self._num_ids)) in (Kind.CONTROL, Kind.UNKNOWN)

    @property
    def drops_first_space(self) -> bool:
        """Whether a space at the beginning of an answer is no part of its text."""
        return self._adds_space

    @property
    def _adds_space(self) -> bool:
        return isinstance(self._style, Unigram) or (isinstance(self._style, Spaces) and self._style.prefix)

    @staticmethod
    def _checked_id(token: object, count: int) -> int:
        """The id as Python's own whole number; other libraries' whole numbers are taken, truth values and fractions are not."""
        if type(token) is not int:
            if isinstance(token, bool) or not isinstance(token, SupportsIndex):
                raise UsageError(f"token id {token!r:.80} is of type {type(token).__name__}; expected a whole number.")
            try:
                token = operator.index(token)
            except TypeError:
                raise UsageError(f"token id is of type {type(token).__name__}; expected a whole number.") from None
        if not 0 <= token < count:
            raise UsageError(f"token id {token} is not in the vocabulary; ids are 0 to {count - 1}.")
        return token

    def _append_text(self, ids: list[int], text: str, *, at_start: bool) -> None:
        """Appends the ids of plain `text`; tokens that the vocabulary defines as always whole are found first."""
        for part in self._find_user_defined.parts(text):
            if isinstance(part, int):
                ids.append(part)
            elif isinstance(self._style, Spaces):
                ids += self._spaced(part, prefix=self._style.prefix and (at_start or self._style.prefix_after_specials))
            elif isinstance(self._style, Unigram):
                ids += self._merger.ids(part)
            else:
                for piece in slices(part) if self._style.split.slices else chunks(part):
                    ids += self._merger.ids(piece)
            at_start = False

    def _spaced(self, text: str, *, prefix: bool) -> list[int]:
        assert isinstance(self._style, Spaces)
        begins_with_space = text.startswith((" ", SPACE))
        lead = SPACE if prefix and (self._style.prefix_before_space or not begins_with_space) else ""
        if self._joins_words:
            return self._merger.ids(lead + text.replace(" ", SPACE))
        ids: list[int] = []
        for piece in chunks(text):
            ids += self._merger.ids(lead + piece.replace(" ", SPACE))
            lead = ""
        return ids


class _Finder:
    """Finds whole tokens in text, the longest at each place. Linear in the text, whatever is in it."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        self._lengths = sorted({len(text) for text in ids}, reverse=True)
        starts = "".join(sorted({text[0] for text in ids}))
        self._start = re.compile(f"[{re.escape(starts)}]") if starts else None

    def parts(self, text: str) -> Iterator[str | int]:
        """Texts between the tokens found, and the tokens' ids; no empty texts."""
        begin = 0
        for at in self._start.finditer(text) if self._start else ():
            here = at.start()
            if here < begin:
                continue
            for length in self._lengths:
                found = self._ids.get(text[here : here + length])
                if found is not None:
                    if here > begin:
                        yield text[begin:here]
                    yield found
                    begin = here + length
                    break
        if begin < len(text):
            yield text[begin:]


def _joined(parts: Iterable[str | int]) -> Iterator[str | int]:
    """The same parts with neighbouring texts as one, and without empty ones."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if any(texts):
            yield "".join(texts)
        texts.clear()
        yield part
    if any(texts):
        yield "".join(texts)


def _items(items: object, name: str, expected: str) -> Iterable[Any]:
    if not isinstance(items, Iterable):
        raise UsageError(f"{name} is {items!r:.80} ({type(items).__name__}); expected {expected}.")
    return items


def _whole_characters(text: object) -> str:
    """The text with U+FFFD for unpaired surrogates; two that are a pair are their character, as `tiktoken` reads them."""
    if not isinstance(text, str):
        raise UsageError(f"text is {text!r:.80} ({type(text).__name__}); expected a str.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _check_model_knows(vocabulary: Vocabulary, model_vocab: int | None) -> None:
    if model_vocab is None or len(vocabulary.tokens) <= model_vocab:
        return
    highest = max((i for i in range(len(vocabulary.tokens)) if vocabulary.exceptions.get(i) is not Kind.UNUSED), default=-1)
    if highest >= model_vocab:
        raise FileProblem(
            f"{vocabulary.source}: the vocabulary has {len(vocabulary.tokens)} tokens and can produce the id {highest}"
            f" ({vocabulary.tokens[highest]!r:.80}); the model knows {model_vocab} ids. They belong to different models."
        )


def _describe(vocabulary: Vocabulary) -> str:
    style = vocabulary.style
    kind = "SentencePiece BPE with bytes" if isinstance(style, Spaces) else "SentencePiece unigram"
    if isinstance(style, ByteLevel):
        kind = f"byte-level BPE, text split as {style.split.name}"
    extra = f"; {vocabulary.extra_description}" if vocabulary.extra_description else ""
    return f"{kind}, {len(vocabulary.tokens):,} tokens{extra}"


def load_tokenizer(
    *,
    kind: str,
    path: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    model_vocab: int | None = None,
) -> Tokenizer:
    """The tokenizer of a checkpoint.

    kind: "gguf" (from `metadata`, the file's `tokenizer.*` keys), "tokenizer.json", "tiktoken", "sentencepiece" or "llama2.c"
    (from `path`; a `tokenizer.model` is recognised by content whichever of the two it is called). config: what
    `tokenizer_config.json` says. model_vocab: how many ids the model knows; those beyond the vocabulary stand for no text.
    `FileProblem` says what is wrong with the vocabulary, or that it can produce ids that the model lacks.
    """
    return Tokenizer(read_vocabulary(kind, path, metadata or {}, config or {}), model_vocab=model_vocab)


def read_vocabulary(kind: str, path: Path | None, metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a checkpoint as data; arguments as of `load_tokenizer`."""
    if kind == "gguf":
        from herd.text.gguf_file import read_gguf

        return read_gguf(metadata)
    if kind not in ("tokenizer.json", "tiktoken", "sentencepiece", "llama2.c") or path is None:
        raise UsageError(
            f"tokenizer kind {kind!r} with path {path}: expected gguf, or tokenizer.json, tiktoken, sentencepiece, llama2.c with a path."
        )
    data = read_bytes(path, BYTES_MAX)
    if kind == "tokenizer.json":
        from herd.text.json_file import read_tokenizer_json

        return read_tokenizer_json(data, config, str(path))
    from herd.text.sentencepiece_file import looks_like_sentencepiece, read_llama2c, read_sentencepiece
    from herd.text.tiktoken_file import looks_like_tiktoken, read_tiktoken

    if kind == "llama2.c":
        return read_llama2c(data, str(path))
    if looks_like_tiktoken(data):
        return read_tiktoken(data, str(path))
    if looks_like_sentencepiece(data):
        return read_sentencepiece(data, str(path))
    raise FileProblem(
        f"{path} is neither a list of tokens and ranks (Llama 3, 4) nor a SentencePiece model (Llama 1, 2). It is damaged or foreign."
    )
