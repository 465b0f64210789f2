"""What the licence of a model wants beside a copy of it, or shown where it answers: texts, the Notice file, the badge.

    due(release, names of the texts that are there) -> Due

Whoever writes a model somewhere (`herd convert`, `herd quantize`, training) carries the texts of its source along and adds what is due;
what cannot be made up, the licence's own text, is asked for by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from herd.family.catalogue import known, releases
from herd.planner.licence import check
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

NOTICE, LICENCES = "NOTICE", ("LICENSE", "LICENCE")
UNKNOWN = "The source has no licence file, so none was carried along; the model's licence holds all the same."


@dataclass(frozen=True, slots=True)
class Due:
    """`files` to be written beside a copy, by name; what has to be done besides, in `warnings`; the `badge` to be shown, or None."""

    files: Mapping[str, bytes]
    warnings: tuple[str, ...]
    badge: str | None = None


def due(release: Release | None, there: Collection[str], notice: bytes = b"") -> Due:
    """What is due where a model made from this release is handed on, and texts of these names come along; `notice` is what the Notice
    file among them says. Of a release that nobody knows only the missing licence is said."""
    has_licence = any(name.upper().startswith(LICENCES) for name in there)
    if release is None:
        return Due({}, () if has_licence else (UNKNOWN,))
    ruling = check(release.name, {"use": "derivative-model", "distributes": "yes", "commercial": "no", "users_per_month": 0})
    licence, warnings = ruling.licence, []
    if not has_licence:
        warnings.append(
            f"LICENSE is missing: the source has no licence text to carry along. Before this model is handed on, put the text of the "
            f"{licence.title} beside it as LICENSE; {release.name} is under it."
        )
    line = licence.notice_line()
    files = {}
    if line is not None and not any(name.upper().startswith(NOTICE) for name in there):
        files[NOTICE] = f"{line}\n".encode()
    elif line is not None and _bare(line) not in _bare(notice.decode("utf-8", "replace")):
        warnings.append(f"{NOTICE} of the source does not have the line that the {licence.title} asks for: {line}")
    return Due(files, tuple(warnings), licence.badge)


def badges(names: Collection[str]) -> tuple[str, ...]:
    """What a service has to show that answers with models of these names, each once."""
    found = [release_named(name) for name in names]
    rulings = [check(release.name, {"use": "service"}) for release in found if release is not None and release.is_released]
    return tuple(dict.fromkeys(badge for ruling in rulings if (badge := ruling.licence.badge) is not None))


def release_at(path: Path) -> Release | None:
    """The release that a file or folder is of, by its name or the folder's; None where neither says."""
    return release_named(path.name) or release_named(path.resolve().parent.name)


def release_named(text: str) -> Release | None:
    """The release whose name this is, or begins with: Llama-3.2-1B-Instruct-Q4_K_M.gguf, meta-llama/Llama-2-7b-chat-hf."""
    bare = text.strip().lower().rpartition("/")[2].removesuffix(".gguf").removeprefix("meta-")
    exact = known(text) or known(bare)
    if exact is not None:
        return exact
    begins = [name for name in releases() if bare.startswith(name) and not bare[len(name) : len(name) + 1].isalnum()]
    return releases()[max(begins, key=len)] if begins else None


def _bare(text: str) -> str:
    """Without what copies differ in: spaces, letter case, the copyright sign."""
    return "".join(text.lower().replace("©", "").replace("(c)", "").split())
