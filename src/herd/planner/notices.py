"""What the licence of a model wants beside a copy of it, or shown where it answers: texts, the Notice file, the badge.

    due(release, names of the texts that are there) -> Due

Whoever writes a model somewhere (`herd convert`, `herd quantize`, training) carries the texts of its source along and adds what is due;
what cannot be made up, the licence's own text, is asked for by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from herd.family.catalogue import known, releases
from herd.planner.licence import licence_of
from herd.planner.licence_data import Licence, licence_data
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

NOTICE, LICENCES = "NOTICE", ("LICENSE", "LICENCE")
_CARD_LICENCE = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.-]+)", re.MULTILINE | re.IGNORECASE)
_TITLE_CHARACTERS = 4000
"""A licence says its title near its beginning; what it mentions later may be another one."""
UNKNOWN = "The source has no licence file, so none was carried along; the model's licence holds all the same."


@dataclass(frozen=True, slots=True)
class Due:
    """`files` to be written beside a copy, by name; what has to be done besides, in `warnings`; the `badge` to be shown, or None."""

    files: Mapping[str, bytes]
    warnings: tuple[str, ...]
    badge: str | None = None


def due(release: Release | None, there: Collection[str], notice: bytes = b"", licence: Licence | None = None) -> Due:
    """What is due where a model made from this release is handed on, and texts of these names come along; `notice` is what the Notice
    file among them says. Of a release that nobody knows, `licence` may be known all the same; else only a missing text is said."""
    has_licence = any(name.upper().startswith(LICENCES) for name in there)
    licence = licence if release is None else licence_of(release)
    if licence is None:
        return Due({}, () if has_licence else (UNKNOWN,))
    warnings = []
    if not has_licence:
        warnings.append(
            f"LICENSE is missing: the source has no licence text to carry along. Before this model is handed on, put the text of the "
            f"{licence.title} beside it as LICENSE; {'this model' if release is None else release.name} is under it."
        )
    line = licence.notice_line()
    files = {}
    if line is not None and not any(name.upper().startswith(NOTICE) for name in there):
        files[NOTICE] = f"{line}\n".encode()
    elif line is not None and _bare(line) not in _bare(notice.decode("utf-8", "replace")):
        warnings.append(f"{NOTICE} of the source does not have the line that the {licence.title} asks for: {line}")
    return Due(files, tuple(warnings), licence.badge)


def licence_told(texts: Mapping[str, bytes], said: str = "") -> Licence | None:
    """The licence that a model is under by the titles in its licence and Notice files, by the head of its card, or by what its file says
    of itself (general.license: llama3.2). For models whose names do not tell their release."""
    known_licences = licence_data().licences
    for name, data in texts.items():
        text = data[:_TITLE_CHARACTERS].decode("utf-8", "replace")
        if name.upper().startswith((*LICENCES, NOTICE)):
            bare = _bare(text)
            named = [each for each in known_licences.values() if each.notice is not None and _bare(each.notice[1]) in bare]
            if named:
                return max(named, key=lambda each: len(each.title))
        elif name.upper().startswith("README") and text.startswith("---"):
            said = " ".join([said, *_CARD_LICENCE.findall(text)])
    words = said.lower().replace("_", " ").split()
    return next((licence for word in words if (licence := known_licences.get(word)) is not None), None)


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
