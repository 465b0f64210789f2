"""The program that compiles grammars first, where it may fail: a process of its own, with little memory and nothing to lose.

    vocabulary -> "ready"        then, as often as asked:        grammar -> what is wrong with it, or ""; and the bytes that it took

Run as a file, not as a module of the package: it needs the standard library and `llguidance`, and starts as fast as they do. Frames
on its standard input and output are a length (4 bytes, little end first) and JSON.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any, BinaryIO


class Words:
    """A vocabulary as `llguidance` takes it; its last token is the end. A forced text becomes the longest tokens that fit, one after
    another: which ones does not matter to whether a grammar compiles."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = len(tokens) - 1
        specials = frozenset(special_ids)
        self._ids = {token: index for index, token in enumerate(tokens) if token and index not in specials}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        rest = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        while rest:
            size = next((size for size in range(min(self._longest, len(rest)), 0, -1) if rest[:size] in self._ids), 0)
            if size == 0:
                break
            ids.append(self._ids[rest[:size]])
            rest = rest[size:]
        return ids


def read(stream: BinaryIO) -> Any:
    """The next frame; ends the process when there is none."""
    head = stream.read(4)
    if len(head) < 4:
        sys.exit(0)
    return json.loads(stream.read(struct.unpack("<I", head)[0]))


def write(stream: BinaryIO, value: Any) -> None:
    """Sends a frame."""
    data = json.dumps(value).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def memory() -> tuple[int, int]:
    """Bytes of addresses and of memory in use; zeros where that is not known."""
    if sys.platform != "linux":
        return 0, 0
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        size, resident = file.read().split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


def limit(memory_bytes: int) -> None:
    """From here on, only so much more memory; and no files, no cores."""
    try:
        import resource
    except ImportError:  # not a POSIX system: time is still bounded from outside
        return
    size, _ = memory()
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + memory_bytes, size + memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tried(tokenizer: Any, grammar: str, limits: dict[str, int]) -> str:
    """Compiles a grammar and takes its first step."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**limits, verbose_errors=False))  # type: ignore[arg-type]
    if matcher.is_error():
        return matcher.get_error() or "error"
    mask = int.from_bytes(matcher.compute_bitmask(), "little")
    if matcher.is_stopped() and not matcher.is_accepting():
        return "nothing satisfies it"
    if matcher.is_error():
        return matcher.get_error() or "error"
    end = 1 << tokenizer.eos_token
    if mask & ~end:
        return ""
    return "only the empty text satisfies it" if mask & end and matcher.is_accepting() else "nothing satisfies it"


def main() -> None:
    """Serves until its input ends."""
    from llguidance import LLTokenizer

    source, target = sys.stdin.buffer, sys.stdout.buffer
    start = read(source)
    words = Words([token.encode("latin-1") for token in start["tokens"]], start["special_ids"])
    tokenizer = LLTokenizer(words)  # type: ignore[arg-type]
    tried(tokenizer, 'start: %json {"type": "object"}', start["limits"])
    limit(start["memory_bytes"])
    write(target, "ready")
    while True:
        grammar = read(source)
        _, before = memory()
        problem = tried(tokenizer, grammar, start["limits"])[:2000]
        write(target, [problem, max(0, memory()[1] - before)])


if __name__ == "__main__":
    main()
