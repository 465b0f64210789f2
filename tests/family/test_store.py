"""The models folder: what is here, what a name means, and that deleting never leaves the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from herd.errors import CapacityError, FileProblem, UsageError
from herd.family import store
from herd.family.finding import find_model
from herd.files import models_folder
from herd.files.kept import keep, open_kept


@pytest.fixture
def folder() -> Path:
    models_folder().mkdir(parents=True)
    return models_folder()


def put(entry: Path, *names: str) -> Path:
    entry.mkdir()
    for name in names:
        (entry / name).write_bytes(b"12345")
    return entry


def nobody() -> None:
    raise AssertionError("nothing to wait for")


def test_an_empty_machine_has_no_models() -> None:
    assert store.installed() == [] and store.locate("x") is None


def test_files_and_folders_are_found_and_hidden_ones_are_not(folder: Path) -> None:
    put(folder / "a", "model.gguf")
    put(folder / "b", "config.json", "model.safetensors")
    put(folder / ".partial")
    (folder / "c.gguf").write_bytes(b"123")
    (folder / "notes.txt").write_bytes(b"1")
    found = {model.name: (model.path.name, model.num_bytes) for model in store.installed()}
    assert found == {"a": ("model.gguf", 5), "b": ("b", 10), "c.gguf": ("c.gguf", 3)}


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a\\b", "/etc", "C:x", "a\0b", "", ".partial", "x" * 300, "a\nb"])
def test_a_name_is_never_a_path(folder: Path, name: str) -> None:
    put(folder.parent / "x", "model.gguf")
    assert store.locate(name) is None
    with pytest.raises(UsageError):
        store.remove(name, on_wait=nobody)
    assert (folder.parent / "x" / "model.gguf").exists()


def test_removing_a_model_removes_it_alone(folder: Path) -> None:
    put(folder / "a", "model.gguf")
    put(folder / "b", "model.gguf")
    assert store.remove("a", on_wait=nobody) == 5
    assert [model.name for model in store.installed()] == ["b"]
    assert not store.partial_folder("a").exists()


def test_removing_a_link_leaves_what_it_points_to(folder: Path, tmp_path: Path) -> None:
    mine = put(tmp_path / "mine", "model.gguf")
    (folder / "a").symlink_to(mine)
    assert store.remove("a", on_wait=nobody) == 0
    assert (mine / "model.gguf").exists() and store.locate("a") is None


def test_what_a_text_means(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "mine", "model.gguf")
    here = put(tmp_path / "work")
    monkeypatch.chdir(here)
    (here / "other.gguf").write_bytes(b"1")
    put(here / "plain", "config.json")
    assert find_model("mine").path == folder / "mine" / "model.gguf"
    assert find_model("other.gguf").name == "other"
    assert find_model("plain").path == Path("plain")
    assert find_model(here / "plain").name == "plain"
    assert find_model(".").name == "work"


def test_the_part_of_a_model_that_sees_pictures_is_no_model_of_its_own(folder: Path) -> None:
    put(folder / "a", "model.gguf", "mmproj-model.gguf")
    (folder / "c.gguf").write_bytes(b"123")
    (folder / "mmproj-c.gguf").write_bytes(b"123")
    assert [(model.name, model.path.name) for model in store.installed()] == [("a", "model.gguf"), ("c.gguf", "c.gguf")]


@pytest.mark.parametrize("text", ["missing.gguf", "./missing", "/no/such/folder", "../x.bin"])
def test_a_path_that_is_not_there_is_a_file_problem(text: str) -> None:
    with pytest.raises(FileProblem, match="does not exist"):
        find_model(text)


@pytest.mark.parametrize("value", ["", " ", "a\0b", 7, None, ["x"]])
def test_what_is_no_name_at_all_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        find_model(value)  # type: ignore[arg-type]


def test_a_known_model_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(UsageError, match="herd pull smollm2-135m-instruct"):
        find_model("SmolLM2-135M-Instruct", is_fetched=False)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="HERD_HOME"):
        store.make_folder(models_folder())


def test_a_home_that_is_a_file_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="HERD_HOME"):
        store.make_folder(models_folder())


def test_removing_a_model_removes_what_the_cache_keeps_of_it(folder: Path) -> None:
    for name in ("a", "b"):
        put(folder / name, "model.gguf")
        about = {"source": str(folder / name / "model.gguf")}
        assert keep(name, about, {"weights": memoryview(bytes(100))}, lambda: False)
    assert store.remove("a", on_wait=nobody) > 100
    assert open_kept("a") is None and open_kept("b") is not None


def test_a_model_that_another_process_removed_meanwhile_is_told_as_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = put(folder / "a", "model.gguf")

    @contextlib.contextmanager
    def waited(name: str, **_: object) -> Iterator[None]:
        shutil.rmtree(entry)
        yield

    monkeypatch.setattr(store, "guarded", waited)
    with pytest.raises(UsageError, match="is not in"):
        store.remove("a", on_wait=nobody)


def test_a_disk_that_is_full_when_a_model_is_complete_is_a_matter_of_capacity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    complete = put(folder / ".complete", "model.gguf")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CapacityError, match=r"source\.json"):
        store.publish("a", complete, "somewhere", {})
    assert store.locate("a") is None
