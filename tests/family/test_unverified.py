"""What is built to a description only is listed where people look for it."""

from __future__ import annotations

from pathlib import Path

from herd.family.catalogue import releases


def test_the_page_lists_exactly_what_the_catalogue_calls_unverified(repository: Path) -> None:
    page = (repository / "docs" / "unverified.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    listed = {name for name in releases() if any(f"`{name}`" in line for line in table)}
    assert listed == {name for name, release in releases().items() if release.unverified}


def test_the_page_names_the_formats_that_are_refused_and_what_was_never_released(repository: Path) -> None:
    page = (repository / "docs" / "unverified.md").read_text(encoding="utf-8")
    refused = [name for name, release in releases().items() if set(release.layouts) <= {"executorch", "bitsandbytes"}]
    assert refused and all(f"`{name}`" in page for name in refused) and "Behemoth" in page
