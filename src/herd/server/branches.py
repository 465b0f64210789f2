"""Fields that may be one of several things: which one it is meant to be is decided first, so that an error names what is wrong in it.

    Content = Annotated[Annotated[str, Tag("Text")] | Annotated[list[Block], Tag("List")], by_shape()]
    Block = Annotated[Annotated[TextBlock, Tag("TextBlock")] | Annotated[ImageBlock, Tag("ImageBlock")], by_type(text=..., image=...)]

Tags begin with a capital: such names are no part of the path that an error tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Discriminator

__all__ = ["by_shape", "by_type"]


def by_shape() -> Discriminator:
    """A text (tag `Text`) or a list (tag `List`)."""

    def tag(value: Any) -> str | None:
        return "Text" if isinstance(value, str) else "List" if isinstance(value, list | tuple) else None

    return Discriminator(tag, custom_error_type="herd_shape", custom_error_message="Is neither a text nor a list")


def by_type(default: str | None = None, /, **tags: str) -> Discriminator:
    """An object whose `type` decides: `tags` from type to tag. `default`: the type of an object that has none."""
    return Discriminator(
        _typed(default, tags), custom_error_type="herd_type", custom_error_message=f"Needs a type that is one of {', '.join(tags)}"
    )


def _typed(default: str | None, tags: Mapping[str, str]) -> Callable[[Any], str | None]:
    def tag(value: Any) -> str | None:
        kind = value.get("type", default) if isinstance(value, Mapping) else getattr(value, "type", None)
        return tags.get(kind) if isinstance(kind, str) else None

    return tag
