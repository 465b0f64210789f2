"""Llama 4 (and Muse-Glimmer): the frame of Llama 3 with shorter names, pictures, and several calls a message.

    <|begin_of_text|> ( <|header_start|>role<|header_end|>\\n\\n content <|eot|> )*

As the published template does it: a system message only if there is one (stripped), other contents as they are, calls as JSON
behind `<|python_start|>text<|python_end|>`, results of tools JSON-quoted (role `ipython`). Meta's own way is in `meta.py`.

A picture is `<|image|>` in the template; the model reads it as tiles of patches:

    <|image_start|> ( tile ( <|tile_x_separator|> tile )* <|tile_y_separator|> )* <|image|> whole picture <|image_end|>

where a tile, and the whole picture made small, are 144 `<|patch|>` each; a picture of one tile has no separators and no second view.

Muse-Glimmer's own template is not public; it has the same frame, and pictures are `<|image_start|>`, one `<|patch|>` per patch, and
`<|image_end|>` (see docs/unverified.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.formats import languages, prompts
from herd.text.formats.begun import Head
from herd.text.formats.calls import write_json
from herd.text.formats.parsing import Marks
from herd.text.formats.parts import ChatFormat, Control, Conversation, Grid, Part, control_id
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer
from herd.text.tools import BuiltIn, Tool

TILE_PATCHES = 144
"""Ids of one tile: 24 by 24 patches, four of which become one."""

_BEGIN, _END = Control("<|begin_of_text|>"), Control("<|eot|>")
_HEADER, _HEADER_END = Control("<|header_start|>"), Control("<|header_end|>")
_PYTHON, _PYTHON_END = Control("<|python_start|>"), Control("<|python_end|>")


@dataclass(frozen=True, slots=True)
class ImageIds:
    """The control tokens of a picture."""

    start: int
    end: int
    image: int
    patch: int
    tile_x: int
    tile_y: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ImageIds:
        """`FileProblem` if the vocabulary lacks one."""
        names = ("image_start", "image_end", "image", "patch", "tile_x_separator", "tile_y_separator")
        return cls(*(control_id(f"<|{name}|>", tokenizer) for name in names))


def llama4_image_tokens(rows: int, columns: int, ids: ImageIds, *, tile_patches: int = TILE_PATCHES) -> list[int]:
    """All ids of a picture that was cut into rows * columns tiles. `UsageError` for no tiles."""
    if rows < 1 or columns < 1:
        raise UsageError(f"a picture has {rows} rows and {columns} columns of tiles; it needs one at least.")
    tile = [ids.patch] * tile_patches
    if rows == columns == 1:
        return [ids.start, ids.image, *tile, ids.end]
    row = [token for _ in range(columns) for token in (*tile, ids.tile_x)][:-1]
    return [ids.start, *[*row, ids.tile_y] * rows, ids.image, *tile, ids.end]


def expand_images(tokens: Sequence[int], image: int, expansions: Sequence[Sequence[int]]) -> list[int]:
    """`tokens` with each id `image` replaced by the next of `expansions`. `UsageError` if there are more or fewer."""
    if (found := tokens.count(image)) != len(expansions):
        raise UsageError(f"the prompt has places for {found} pictures; {len(expansions)} are given.")
    following = iter(expansions)
    return [part for token in tokens for part in (next(following) if token == image else (token,))]


def expand_llama4(tokenizer: Tokenizer, tokens: Sequence[int], grids: Sequence[Grid]) -> list[int]:
    """`tokens` with all ids of each picture in place of its `<|image|>`."""
    names = ImageIds.of(tokenizer)
    expansions = [llama4_image_tokens(*grid[:2], names, tile_patches=grid[2] if len(grid) == 3 else TILE_PATCHES) for grid in grids]
    return expand_images(tokens, names.image, expansions)


@final
@dataclass(frozen=True)
class Llama4(ChatFormat):
    """The format has nothing to choose."""

    image_token = "<|image|>"
    marks = Marks(begin=_PYTHON.name, end=_PYTHON_END.name)
    ends = (_END.name, "<|eom|>", "<|end_of_text|>")

    @property
    def name(self) -> str:
        return "llama4"

    def header(self) -> Sequence[Part]:
        return framed_header("assistant")

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """Calls as JSON, one after another."""
        return llama4_calls(tools, parallel=parallel)

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        return languages.json_heads(tools)

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The format has no date, so one changes nothing."""
        yield from llama4_parts(self, conversation)

    def expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        return expand_llama4(self.tokenizer, ids, grids)


@final
@dataclass(frozen=True)
class MuseGlimmer(ChatFormat):
    """Llama 4's frame; a picture is a run of patches, `tiles` gives their rows and columns."""

    image_token = "<|patch|>"
    marks = Marks(begin=_PYTHON.name, end=_PYTHON_END.name)
    ends = (_END.name, "<|eom|>", "<|end_of_text|>")

    @property
    def name(self) -> str:
        return "muse-glimmer"

    def header(self) -> Sequence[Part]:
        return framed_header("assistant")

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """As Llama 4's."""
        return llama4_calls(tools, parallel=parallel)

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        return languages.json_heads(tools)

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The format has no date, so one changes nothing."""
        yield from llama4_parts(self, conversation)

    def content(self, message: Message, *, strip: bool) -> list[Part]:
        """As in all formats, with the two control tokens that stand around a picture."""
        written: list[Part] = []
        for part in super().content(message, strip=strip):
            is_picture = isinstance(part, Control)
            written += (Control("<|image_start|>"), part, Control("<|image_end|>")) if is_picture else (part,)
        return written

    def expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        return expand_images(ids, self.image_id, [[self.image_id] * (grid[0] * grid[1]) for grid in grids])


def llama4_parts(chat_format: ChatFormat, conversation: Conversation) -> Iterator[Part]:
    """The prompt of Llama 4's template, with the pictures as `chat_format` writes them."""
    messages = list(conversation.messages)
    for tool in conversation.built_ins:
        raise UsageError(f"the built-in tool {tool.value} is offered; the chat format {chat_format.name} knows functions only.")
    yield _BEGIN
    if messages[0].role is Role.SYSTEM:
        environment = "Environment: ipython\n" if conversation.tools else ""
        yield from (*framed_header("system"), environment + messages.pop(0).text.strip(), _END)
    if conversation.tools:
        if not messages or messages[0].role is not Role.USER or messages[0].images:
            raise UsageError(
                f"tools are offered; the chat format {chat_format.name} describes them in the first message, which must be a user's"
                " and without pictures."
            )
        described = prompts.json_functions(conversation.tools)
        yield from (*framed_header("user"), described + messages.pop(0).text.strip(), _END)
    for message in messages:
        yield from _message(chat_format, message)
    if conversation.add_generation_prompt:
        yield from framed_header("assistant")


def llama4_calls(tools: Sequence[Tool | BuiltIn], *, parallel: bool) -> str:
    """The grammar of JSON calls that follow one another as the template writes them, or each on its line."""
    grammar = languages.Grammar()
    calls = " | ".join(languages.json_calls(grammar, tools))
    return grammar.text(languages.several(calls, r"/\n?/", parallel=parallel))


def framed_header(role: str) -> tuple[Part, ...]:
    """What stands before a message."""
    return _HEADER, role, _HEADER_END, "\n\n"


def _message(chat_format: ChatFormat, message: Message) -> Iterator[Part]:
    if message.role is Role.TOOL:
        yield from (*framed_header("ipython"), json.dumps(message.text, ensure_ascii=False))
    elif message.tool_calls:
        yield from (*framed_header("assistant"), _PYTHON, message.text, _PYTHON_END)
        yield from (write_json(call) for call in message.tool_calls)
    else:
        yield from framed_header(message.role.value)
        yield from chat_format.content(message, strip=False)
    yield _END
