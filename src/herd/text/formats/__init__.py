"""Chat formats: what a model was taught a conversation looks like, as ids. `choose_format` finds a model's own."""

from herd.text.formats.choose import NAMES, choose_format, meta_format
from herd.text.formats.parts import ChatFormat

__all__ = ["NAMES", "ChatFormat", "Formats", "choose_format", "meta_format"]

Formats = tuple[ChatFormat | None, ChatFormat | None]
"""Of one model: the published format, and Meta's own."""
