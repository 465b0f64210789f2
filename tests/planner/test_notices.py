"""What licences want beside copies and shown by services: of each generation, the line, the badge and the missing text by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.checkpoints.gguf_keys import FILES
from herd.convert.gguf_file import write_gguf
from herd.convert.notices import licence_at, write_notices
from herd.convert.texts import MAX_TEXT_BYTES, texts_at
from herd.convert.trained import write_trained
from herd.convert.writing import Told
from herd.family.progress import silent
from herd.planner.notices import UNKNOWN, due, licence_told, release_at, release_named
from tiny import random_leaves, tiny_llama

LINE = "{} is licensed under the {}, Copyright {} Meta Platforms, Inc. All Rights Reserved.\n"
GENERATIONS = {
    "llama-2-7b": (LINE.format("Llama 2", "LLAMA 2 Community License", "(c)"), None),
    "code-llama-7b": (LINE.format("Llama 2", "LLAMA 2 Community License", "(c)"), None),
    "llama-3-8b": (LINE.format("Meta Llama 3", "Meta Llama 3 Community License", "©"), "Built with Meta Llama 3"),
    "llama-3.1-8b": (LINE.format("Llama 3.1", "Llama 3.1 Community License", "©"), "Built with Llama"),
    "llama-3.2-1b": (LINE.format("Llama 3.2", "Llama 3.2 Community License", "©"), "Built with Llama"),
    "llama-3.3-70b-instruct": (LINE.format("Llama 3.3", "Llama 3.3 Community License", "©"), "Built with Llama"),
    "llama-4-scout": (LINE.format("Llama 4", "Llama 4 Community License", "©"), "Built with Llama"),
    "smollm2-135m": (None, None),
}


@pytest.mark.parametrize("name", GENERATIONS)
def test_each_generation_has_its_line_its_badge_and_asks_for_its_licence(name: str) -> None:
    line, badge = GENERATIONS[name]
    found = due(release_named(name), ())
    assert {key: data.decode() for key, data in found.files.items()} == ({} if line is None else {"NOTICE": line})
    assert found.badge == badge
    (warning,) = found.warnings
    assert warning.startswith("LICENSE is missing") and name in warning


@pytest.mark.parametrize("name", GENERATIONS)
def test_with_the_texts_of_the_source_nothing_is_missing(name: str) -> None:
    line, _ = GENERATIONS[name]
    found = due(release_named(name), ("LICENSE.txt", "Notice"), (line or "").encode())
    assert not found.files and not found.warnings


def test_llama_1_wants_its_line_too() -> None:
    """Section 3 of its licence."""
    release = release_named("llama-1-7b") or release_named("llama-7b")
    assert release is not None and b"LLaMA License" in due(release, ("LICENSE",)).files["NOTICE"]


def test_a_notice_without_the_line_is_pointed_out() -> None:
    found = due(release_named("llama-3.1-8b"), ("LICENSE", "NOTICE"), b"Something else.")
    assert not found.files and "does not have the line" in found.warnings[0]


def test_of_an_unknown_model_only_the_missing_licence_is_said() -> None:
    assert due(None, ()).warnings == (UNKNOWN,) and not due(None, ()).files
    assert not due(None, ("LICENCE.md",)).warnings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b-instruct"),
        ("Llama-3.2-1B", "llama-3.2-1b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b-chat"),
        ("Meta-Llama-3-8B-Instruct", "llama-3-8b-instruct"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("something-of-my-own", None),
        ("llama-3.2-1bis", None),
    ],
)
def test_a_release_is_known_by_the_name_of_its_file_or_folder(text: str, name: str | None) -> None:
    found = release_named(text)
    assert (found.name if found is not None else None) == name


def test_a_file_in_a_folder_of_the_models_name_is_that_model(tmp_path: Path) -> None:
    found = release_at(tmp_path / "llama-3.1-8b" / "weights.gguf")
    assert found is not None and found.name == "llama-3.1-8b"


def test_the_licence_of_a_model_is_known_by_its_release_its_name_or_what_lies_in_it(tmp_path: Path) -> None:
    """Whatever it is called where it is served."""
    plain, named, renamed, nameless = (tmp_path / name for name in ("weights", "llama-3.3-70b-instruct", "poems", "nothing"))
    for folder in (plain, named, renamed, nameless):
        folder.mkdir()
    (renamed / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    found = [licence_at(plain, release_named("llama-3-8b")), licence_at(named), licence_at(renamed), licence_at(nameless)]
    assert [each and each.badge for each in found] == ["Built with Meta Llama 3", "Built with Llama", "Built with Llama", None]
    assert found[-1] is None and found[2] is not None and found[2].id == "llama3.2"


def test_the_licence_of_a_renamed_file_is_what_it_says_of_itself(tmp_path: Path) -> None:
    with (tmp_path / "poems.gguf").open("wb") as file:
        write_gguf(file, {"general.architecture": "llama", "general.license": "llama3.1"}, [], Told(silent, "poems.gguf", 0))
    found = licence_at(tmp_path / "poems.gguf")
    assert found is not None and found.id == "llama3.1"


def test_what_was_made_from_a_model_gets_its_texts_and_the_line(tmp_path: Path) -> None:
    """The function that trained adapters and models are finished with."""
    source, made = tmp_path / "Llama-3.2-1B", tmp_path / "adapter"
    for folder in (source, made):
        folder.mkdir()
    (source / "LICENSE.txt").write_text("the licence's text")
    (source / "USE_POLICY.md").write_text("the policy")
    (source / "README.md").write_text("about the model itself")
    assert write_notices(made, source) == ()
    assert sorted(path.name for path in made.iterdir()) == ["LICENSE.txt", "NOTICE", "USE_POLICY.md"]
    assert (made / "NOTICE").read_text() == GENERATIONS["llama-3.2-1b"][0]
    (made / "NOTICE").write_text("kept")
    (source / "LICENSE.txt").unlink()
    assert "LICENSE is missing" in write_notices(made, source)[0]
    assert (made / "NOTICE").read_text() == "kept"


@pytest.mark.parametrize(
    ("texts", "said", "licence"),
    [
        ({"LICENSE.txt": b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date"}, "", "llama3.2"),
        ({"LICENSE": b"META LLAMA 3 COMMUNITY LICENSE AGREEMENT"}, "", "llama3"),
        ({"Notice": b"Llama 4 is licensed under the Llama 4 Community License, Copyright"}, "", "llama4"),
        ({"README.md": b"---\nlanguage: en\nlicense: llama3.1\n---\n# Mine"}, "", "llama3.1"),
        ({"README.md": b"license: llama3.1"}, "", None),
        ({"README.md": b"---\nlicense: other\nlicense_name: llama3.3\n---"}, "", "llama3.3"),
        ({}, "llama2", "llama2"),
        ({"LICENSE": b"MIT License"}, "mit", None),
    ],
)
def test_a_licence_is_known_by_what_lies_beside_a_model_whose_name_says_nothing(
    texts: dict[str, bytes], said: str, licence: str | None
) -> None:
    found = licence_told(texts, said)
    assert (found.id if found is not None else None) == licence


def test_a_renamed_model_gets_the_line_of_the_licence_that_lies_beside_it(tmp_path: Path) -> None:
    source, made = tmp_path / "our-bank", tmp_path / "adapter"
    for folder in (source, made):
        folder.mkdir()
    (source / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    assert write_notices(made, source) == () and (made / "NOTICE").read_text() == GENERATIONS["llama-3.2-1b"][0]
    (source / "LICENSE").unlink()
    (made / "NOTICE").unlink()
    (source / "README.md").write_text("---\nlicense: llama3.3\n---\n")
    (told,) = write_notices(made, source)
    assert "Llama 3.3 Community License beside it" in told and "Llama 3.3" in (made / "NOTICE").read_text()
    assert not (made / "README.md").exists()


def test_what_was_made_from_a_single_file_gets_the_texts_inside_it(tmp_path: Path) -> None:
    """QAT and adapters of a GGUF file that was converted, and renamed since."""
    source, made = tmp_path / "renamed.gguf", tmp_path / "made"
    made.mkdir()
    keys = {"general.architecture": "llama", "general.license": "llama3.1", f"{FILES}USE_POLICY.md": "the policy"}
    with source.open("wb") as file:
        write_gguf(file, keys, [], Told(silent, source.name, 0))
    (told,) = write_notices(made, source)
    assert "LICENSE is missing" in told and "Llama 3.1" in told
    assert sorted(path.name for path in made.iterdir()) == ["NOTICE", "USE_POLICY.md"]


def test_beside_a_single_file_only_the_texts_of_a_llama_licence_are_its_own(tmp_path: Path) -> None:
    """A folder of downloads holds texts of many things."""
    source = tmp_path / "downloads" / "poems.gguf"
    source.parent.mkdir()
    with source.open("wb") as file:
        write_gguf(file, {"general.architecture": "llama"}, [], Told(silent, source.name, 0))
    (source.parent / "LICENSE").write_text("MIT License")
    (source.parent / "README.md").write_text("about something else")
    assert texts_at(source).files == {} and licence_at(source) is None
    (source.parent / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    assert texts_at(source).files.keys() == {"LICENSE"}
    found = licence_at(source)
    assert found is not None and found.id == "llama3.2"


def test_texts_that_are_too_large_or_lie_elsewhere_are_left_out_and_told_of(tmp_path: Path) -> None:
    source, made = tmp_path / "model", tmp_path / "made"
    for folder in (source, made):
        folder.mkdir()
    (source / "LICENSE").write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    (tmp_path / "elsewhere").write_text("somebody's")
    (source / "NOTICE").symlink_to(tmp_path / "elsewhere")
    told = write_notices(made, source)
    assert any("LICENSE: is larger than 1,048,576 bytes" in note and "not carried along" in note for note in told)
    assert any("NOTICE: is a link that leads out of the folder" in note for note in told)
    assert not list(made.iterdir())


def test_a_model_that_was_trained_from_a_single_file_has_the_texts_inside_it(tmp_path: Path) -> None:
    source = tmp_path / "renamed.gguf"
    keys = {
        "general.architecture": "llama",
        f"{FILES}LICENSE": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT",
        f"{FILES}USE_POLICY.md": "the policy",
    }
    with source.open("wb") as file:
        write_gguf(file, keys, [], Told(silent, source.name, 0))
    cfg = tiny_llama()
    report = write_trained(tmp_path / "made", cfg, random_leaves(cfg), beside=source)
    assert not any("licence" in note.lower() or "LICENSE" in note for note in report.notes)
    assert (tmp_path / "made" / "LICENSE").read_text().startswith("LLAMA 3.1") and (tmp_path / "made" / "USE_POLICY.md").is_file()
    assert "Llama 3.1" in (tmp_path / "made" / "NOTICE").read_text()
