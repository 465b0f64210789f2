"""Answers held to a language: from what was asked for (`Constraint`) to masks of tokens, by `llguidance`.

    Grammars (of a vocabulary) --matcher(constraint)--> GrammarMatcher (of an answer) --allowed, forced, advance--> masks and ids

Forced tokens: where the language leaves no choice of text (the keys of a schema, the name of a tool), the text is cut into tokens as
the model's own tokenizer cuts it, and these are the only ones allowed; they need not be drawn. All of them are settled where the first
one is, so that what an answer becomes does not depend on how many were computed in one step.

JSON may have a space, or a new line with up to 32 spaces or tabs, where JSON allows white space: models indent, and none can write white
space for ever. Other limits are those of `compiling.py`.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.errors import HerdError, UsageError
from herd.records import dataclass
from herd.sampling.compiling import LIMITS, Compiler, refusal
from herd.sampling.compiling_child import Words
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.endless import REPETITIONS_MAX, has_instance, longest, patterns_of
from herd.sampling.matching import WORD_BITS, is_allowed

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

CHARACTERS_MAX = 1 << 20
"""Of a constraint's text."""
CACHE_BYTES = 64 << 20
SMALLEST_BYTES = 1 << 16
"""What a compiled grammar is counted as at least."""
WHITESPACE = r"( |\n[ \t]{0,32})?"
_OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"u'}
_FOREIGN = 0xFF  # a byte that no text has, with which llguidance marks control tokens
_NAMES = {
    ConstraintKind.JSON_OBJECT: "a JSON object",
    ConstraintKind.JSON_SCHEMA: "the JSON schema",
    ConstraintKind.REGEX: "the regular expression",
    ConstraintKind.GRAMMAR: "the grammar",
}


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a grammar has to know of a vocabulary.

    tokens               the bytes of each token that can be drawn; of control tokens anything
    special_ids          the control tokens: no text is made of them
    encode               a text inside a text -> ids, as the model's tokenizer cuts it
    begins_with_space    whether answers begin with a space that is not part of their text
    """

    tokens: Sequence[bytes]
    special_ids: Collection[int]
    encode: Callable[[str], Sequence[int]]
    begins_with_space: bool = False


class Grammars:
    """The compiled grammars of one vocabulary. Usable from several threads.

    The first use takes a moment (a table of the vocabulary, and the process that compiles). `matcher` may take as long as a grammar
    may take to compile, so it is not for a thread that others wait for.
    """

    def __init__(self, find_spelling: Callable[[], Spelling], *, compiler: Callable[..., Compiler] = Compiler) -> None:
        """find_spelling: gives the vocabulary when it is first needed."""
        self._find_spelling = find_spelling
        self._make_compiler = compiler
        self._lock = threading.Lock()
        self._vocabulary: _Vocabulary | None = None
        self._compiled: OrderedDict[str, tuple[LLMatcher, int]] = OrderedDict()
        self.num_bytes = 0

    def matcher(
        self,
        constraint: Constraint,
        stop_ids: Collection[int],
        *,
        param: str | None = None,
        what: str | None = None,
        or_else: str | None = None,
    ) -> GrammarMatcher:
        """For an answer that is ended by one of `stop_ids`. or_else: a grammar of which the answer may be as well. `UsageError` for a
        constraint that is damaged, too large, or that nothing satisfies; it names `param`, and calls the constraint `what`."""
        what = what or _NAMES[constraint.kind]
        vocabulary = self._ready()
        grammar = written(constraint, begins_with_space=vocabulary.begins_with_space, param=param, or_else=or_else)
        matcher = self._get(grammar)
        if matcher is None:
            _refuse_endless(constraint, what, param)
            verdict = vocabulary.compiler.check(grammar)
            if verdict.problem:
                raise refusal(verdict.problem, what, param)
            matcher = _compiled(vocabulary.table, grammar)
            if matcher.is_error():
                raise refusal(matcher.get_error(), what, param)
            self._keep(grammar, matcher, max(verdict.num_bytes, SMALLEST_BYTES, 16 * len(grammar)))
        return GrammarMatcher(matcher.deep_copy(), vocabulary.num_tokens, stop_ids, what, param)

    def close(self) -> None:
        """Ends the process that compiles."""
        with self._lock:
            if self._vocabulary is not None:
                self._vocabulary.compiler.close()

    def _ready(self) -> _Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _Vocabulary(self._find_spelling(), self._make_compiler)
            return self._vocabulary

    def _get(self, grammar: str) -> LLMatcher | None:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is None:
                return None
            self._compiled.move_to_end(grammar)
            return found[0]

    def _keep(self, grammar: str, matcher: LLMatcher, num_bytes: int) -> None:
        with self._lock:
            if grammar in self._compiled:
                return
            self._compiled[grammar] = matcher, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > CACHE_BYTES:
                _, (_, freed) = self._compiled.popitem(last=False)
                self.num_bytes -= freed


class GrammarMatcher:
    """One answer's place in its grammar (`matching.Matcher`)."""

    def __init__(self, matcher: LLMatcher, num_tokens: int, stop_ids: Iterable[int], what: str, param: str | None) -> None:
        self._matcher = matcher
        self._end = num_tokens
        self._num_words = -(-num_tokens // WORD_BITS)
        self._stops = frozenset(token for token in stop_ids if token < num_tokens)
        self._stop_words = _bits(self._stops, self._num_words)
        self._forced: deque[int] = deque()
        self._what, self._param = what, param
        self._num_said = 0
        self.problem: HerdError | None = None

    @property
    def is_done(self) -> bool:
        return self.problem is None and self._matcher.is_stopped() and self._matcher.is_accepting()

    def forced(self) -> list[int]:
        if not self._forced and self.problem is None and not self._matcher.is_stopped():
            for token in self._matcher.compute_ff_tokens():
                if token in self._stops or token >= self._end:
                    break
                self._forced.append(token)
        return list(self._forced)

    def allowed(self, drafted: Sequence[int] = ()) -> list[NDArray[np.uint32]]:
        masks: list[NDArray[np.uint32]] = []
        kept, said = self._forced.copy(), 0
        for token in [*drafted, None]:
            mask = self._mask()
            if self.problem is not None:
                break
            masks.append(mask)
            if token is None or token in self._stops or not is_allowed(mask, token):
                break
            self._say(token)
            said += 1
        if masks:  # a problem further on is none of the answer's: it has not come so far
            self.problem = None
        if said:
            self._matcher.rollback(said)
        self._forced = kept
        return masks

    def advance(self, token: int) -> None:
        self._say(token)
        self._num_said += 1

    def takes(self, token: int) -> bool:
        """Whether the answer is still in the language with one more token; however its text would be cut."""
        return self.problem is None and self._matcher.validate_tokens([token]) == 1

    def follow(self, token: int) -> None:
        """As `advance`, until `unfollow`."""
        self._say(token)

    def unfollow(self, count: int) -> None:
        """The last `count` tokens that were followed were not said."""
        if count:
            self._matcher.rollback(count)
            self._forced.clear()
            self.problem = None

    def _say(self, token: int) -> None:
        if self._forced and self._forced[0] == token:
            self._forced.popleft()
        else:
            self._forced.clear()
        if not self._matcher.consume_token(token) or (self._matcher.is_stopped() and not self._matcher.is_accepting()):
            self.problem = self._no_way()

    def _mask(self) -> NDArray[np.uint32]:
        """What may come next; `problem` if nothing may."""
        forced = self.forced()
        if forced:
            return _bits(forced[:1], self._num_words)
        data = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        mask = data[: self._num_words] & ~self._stop_words
        if self._end % WORD_BITS:
            mask[-1] &= (1 << (self._end % WORD_BITS)) - 1
        if is_allowed(data, self._end) and self._matcher.is_accepting():
            mask |= self._stop_words
        if not mask.any():
            self.problem = self._no_way()
        return mask

    def _no_way(self) -> HerdError:
        reason = "its rules became too complex to follow" if "TooComplex" in self._matcher.stop_reason() else "no token can follow"
        return UsageError(
            f"The answer cannot be held to {self._what} any further: {reason} after {self._num_said} tokens.", param=self._param
        )


class _Vocabulary:
    """Made once: llguidance's table of the tokens, with the end of an answer as one token more, and the compiler."""

    def __init__(self, spelling: Spelling, make_compiler: Callable[..., Compiler]) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise UsageError("Answers can be held to a schema or a grammar with the package llguidance: pip install llguidance") from None
        self.num_tokens = len(spelling.tokens)
        self.begins_with_space = spelling.begins_with_space
        specials = frozenset(spelling.special_ids)
        tokens = [b"" if token in specials or _FOREIGN in data else bytes(data) for token, data in enumerate(spelling.tokens)]
        for token in specials:
            tokens[token] = b"<|%d|>" % token
        tokens.append(b"<|end|>")
        special_ids = sorted([*specials, self.num_tokens])
        self.compiler = make_compiler(tokens, special_ids)
        with suppress(RuntimeError):  # without a thread it begins when it is first needed
            threading.Thread(target=self.compiler.begin, daemon=True).start()  # while the table is made
        self.table: LLTokenizer = LLTokenizer(_Cutting(tokens, special_ids, spelling.encode))  # type: ignore[arg-type]


class _Cutting(Words):
    """A vocabulary whose texts are cut as the model's tokenizer does it."""

    def __init__(self, tokens: list[bytes], special_ids: list[int], encode: Callable[[str], Sequence[int]]) -> None:
        super().__init__(tokens, special_ids)
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        whole = text if isinstance(text, str) else text.decode("utf-8", "replace")
        ids = list(self._encode(whole))
        return ids if b"".join(self.tokens[token] for token in ids) == whole.encode() else super().__call__(whole)


def written(constraint: Constraint, *, begins_with_space: bool = False, param: str | None = None, or_else: str | None = None) -> str:
    """A constraint as llguidance reads grammars. `UsageError` for a text that is too long, or no JSON where it must be."""
    text: object = constraint.text
    if not isinstance(text, str) or len(text) > CHARACTERS_MAX:
        found = f"has {len(text)} characters" if isinstance(text, str) else f"is {type(text).__name__}"
        raise UsageError(f"{_NAMES[constraint.kind]} {found}; expected a text of at most {CHARACTERS_MAX} characters.", param=param)
    space = '" " ' if begins_with_space else ""
    other = "" if or_else is None else f" | {space}@other"
    if constraint.kind is ConstraintKind.GRAMMAR:
        grammars = [{"name": "answer", "lark_grammar": f"start: {space}@body{other}"}, {"name": "body", "lark_grammar": text}]
    elif constraint.kind is ConstraintKind.REGEX:
        grammars = [{"name": "answer", "lark_grammar": f"start: {space}/{_slashed(text)}/{other}"}]
    else:
        schema = {"type": "object"} if constraint.kind is ConstraintKind.JSON_OBJECT else read_schema(text, param)
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": _OPTIONS}
        grammars = [{"name": "answer", "lark_grammar": f"start: {space}%json {json.dumps(schema)}{other}"}]
    if or_else is not None:
        grammars.append({"name": "other", "lark_grammar": or_else})
    return json.dumps({"grammars": grammars})


def read_schema(text: str, param: str | None = None) -> Any:
    """A JSON schema from its text. `UsageError` for what is no JSON, or no schema."""
    try:
        schema = json.loads(text, parse_constant=_refuse)
        json.dumps(schema)
    except (ValueError, RecursionError):
        raise UsageError("the JSON schema is no JSON, or nested too deeply; expected an object.", param=param) from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"the JSON schema is {type(schema).__name__}; expected an object.", param=param)
    if isinstance(schema, dict) and "x-guidance" in schema:
        raise UsageError("the JSON schema has x-guidance, which is no keyword of JSON Schema; leave it out.", param=param)
    return schema


def _refuse_endless(constraint: Constraint, what: str, param: str | None) -> None:
    """`UsageError` for a language that compiles, and that no answer can come to the end of."""
    patterns = [constraint.text] if constraint.kind is ConstraintKind.REGEX else []
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        schema = read_schema(constraint.text, param)
        if not has_instance(schema):
            reason = "what it demands is false, or needs itself again inside, for ever"
            raise UsageError(f"{what} is one that no finite value fits: {reason}.", param=param)
        patterns = patterns_of(schema)
    if (characters := max(map(longest, patterns), default=0)) > REPETITIONS_MAX:
        raise UsageError(f"{what} repeats up to {characters:.3g} characters; at most {REPETITIONS_MAX} are possible.", param=param)


def _refuse(text: str) -> None:
    raise ValueError(text)


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes: on one line, without the anchors that hold anyway."""
    pattern = pattern.removeprefix("^")
    body = pattern.removesuffix("$")
    if body != pattern and (len(body) - len(body.rstrip("\\"))) % 2 == 0:
        pattern = body
    written, escaped = [], False
    for character in pattern:
        if character == "/" and not escaped:
            written.append("\\/")
        elif character == "\n":
            written.append("n" if escaped else "\\n")
        else:
            written.append(character)
        escaped = character == "\\" and not escaped
    return "".join(written)


def _compiled(table: LLTokenizer, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(table, grammar, log_level=0, limits=LLParserLimits(**LIMITS, verbose_errors=False))  # type: ignore[arg-type]


def _bits(tokens: Iterable[int], num_words: int) -> NDArray[np.uint32]:
    words = np.zeros(num_words, np.uint32)
    for token in tokens:
        words[token // WORD_BITS] |= np.uint32(1 << (token % WORD_BITS))
    return words
