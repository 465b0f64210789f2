"""Pages on the disk: the same bits, for a later engine too, within bounds, and never a wrong answer."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.running import STORIES
from engine.engines import STOP, VOCAB, all_back, collect, matrices
from fakes import FakeBackend
from herd.api.loading import load
from herd.backends.base import PAGE_TOKENS, BackendOptions
from herd.backends.cpu import CpuBackend
from herd.engine import disk as on_disk
from herd.engine import page_files
from herd.engine.disk import DiskPages
from herd.engine.engine import Engine
from herd.engine.page_files import PageFiles
from herd.engine.request import Request
from herd.errors import CapacityError, UsageError
from herd.sampling.params import SamplingParams
from tiny import random_leaves, tiny_llama

PAGE_BYTES = PAGE_TOKENS * 8
LIMIT = 100 * (PAGE_BYTES + 40)
PROMPT = [number % VOCAB for number in range(4 * PAGE_TOKENS + 5)]
OTHER = [(number * 7 + 1) % VOCAB for number in range(6 * PAGE_TOKENS)]


class Counting(FakeBackend):
    """Counts the tokens that are computed."""

    computed = 0

    def step(self, plan: Any) -> Any:
        self.computed += plan.num_tokens
        return super().step(plan)


def opened(folder: Path, identity: bytes, page_bytes: int, limit: int) -> DiskPages:
    return DiskPages(PageFiles(folder, identity, page_bytes, limit))


def make(folder: Path, identity: bytes = b"one", limit: int = LIMIT, **options: Any) -> tuple[Engine, Counting, DiskPages]:
    backend = Counting(VOCAB)
    pages = opened(folder, identity, backend.page_bytes(), limit)
    settings: dict[str, Any] = {"context_length": 512, "stop_ids": {STOP}, "num_pages": 8, **options}
    return Engine(backend, disk=pages, **settings), backend, pages


def ask(engine: Engine, tokens: list[int] = PROMPT, salt: bytes = b"") -> list[tuple[int, float]]:
    sampling = SamplingParams(temperature=1.0, seed=3)
    return collect(engine.run(Request(tokens=tokens, sampling=sampling, max_tokens=6, salt=salt, stop_ids=())))


def pages_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.page"))


def tidied(engine: Engine, pages: DiskPages) -> None:
    """Writes all that a pause would."""
    for _ in range(10):
        engine.tidy()
        pages.flush(10)


def test_what_the_memory_had_no_room_for_is_read_instead_of_computed(tmp_path: Path) -> None:
    engine, backend, pages = make(tmp_path / "c")
    first = ask(engine)
    ask(engine, OTHER)  # takes the memory of it
    pages.flush(10)
    before = backend.computed
    sequence = engine.submit(Request(tokens=PROMPT, sampling=SamplingParams(temperature=1.0, seed=3), max_tokens=6, stop_ids=()))
    found = []
    while not (sequence.stop_reason or sequence.error):
        found += [(each.token, each.logprob) for each in engine.step()]
        engine.check()
    assert found == first and sequence.cached_tokens == 4 * PAGE_TOKENS
    assert backend.computed - before == 5 + 5  # the prompt's last tokens, and the answer's
    all_back(engine)
    engine.close()


def test_a_later_engine_finds_what_an_earlier_one_computed(tmp_path: Path) -> None:
    engine, _, _ = make(tmp_path / "c")
    first = ask(engine)
    engine.close()
    again, backend, _ = make(tmp_path / "c")
    assert ask(again) == first and backend.computed == 10
    all_back(again)
    again.close()


def test_what_was_computed_is_written_in_a_pause(tmp_path: Path) -> None:
    engine, _, pages = make(tmp_path / "c")
    ask(engine)
    assert not pages_in(tmp_path / "c")
    tidied(engine, pages)
    assert len(pages_in(tmp_path / "c")) == 4
    engine.close()


def test_the_bits_of_a_real_model_are_the_same(tmp_path: Path) -> None:
    cfg = tiny_llama()
    leaves = random_leaves(cfg, seed=1)
    prompt = [(number * 13 + 5) % cfg.vocab_size for number in range(3 * PAGE_TOKENS + 9)]

    def answers(disk: bool) -> list[tuple[int, float]]:
        backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(threads=1), lambda: None)
        pages = opened(tmp_path / "c", b"m", backend.page_bytes(), 1 << 30) if disk else None
        engine = Engine(backend, context_length=512, num_pages=8, disk=pages)
        found = collect(engine.run(Request(tokens=prompt, sampling=SamplingParams(temperature=1.0, seed=9), max_tokens=8)))
        engine.close()
        return found

    computed = answers(disk=False)
    assert answers(disk=True) == computed
    assert len(pages_in(tmp_path / "c")) == 3
    assert answers(disk=True) == computed


def test_two_models_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    for identity in (b"one", b"two"):
        engine, backend, _ = make(tmp_path / "c", identity)
        ask(engine)
        assert backend.computed == len(PROMPT) + 5
        engine.close()
    assert len(pages_in(tmp_path / "c")) == 8


def test_callers_with_different_salts_do_not_meet_and_names_tell_nothing(tmp_path: Path) -> None:
    engine, _, _ = make(tmp_path / "c", num_pages=16)
    ask(engine, salt=b"a")
    engine.close()
    again, backend, pages = make(tmp_path / "c")
    ask(again, salt=b"b")
    assert backend.computed == len(PROMPT) + 5
    tidied(again, pages)
    assert len(pages_in(tmp_path / "c")) == 8
    again.close()
    elsewhere, _, _ = make(tmp_path / "d")
    ask(elsewhere, salt=b"a")
    elsewhere.close()
    assert not {each.name for each in pages_in(tmp_path / "c")} & {each.name for each in pages_in(tmp_path / "d")}


def test_a_later_engine_finds_what_an_adapter_computed_by_its_matrices(tmp_path: Path) -> None:
    for contents, computed in (("a", len(PROMPT) + 1), ("a", 6), ("b", len(PROMPT) + 1)):
        engine, backend, _ = make(tmp_path / "c")
        engine.add_adapter("poems", matrices(contents))
        request = Request(tokens=PROMPT, sampling=SamplingParams(temperature=0.0), max_tokens=2, adapter="poems", stop_ids=())
        assert len(collect(engine.run(request))) == 2 and backend.computed == computed
        engine.close()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "longer", "empty", "another page", "a folder", "a link"])
def test_a_damaged_or_foreign_file_is_never_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "c"
    engine, _, _ = make(folder)
    first = ask(engine)
    engine.close()
    contents = {each: each.read_bytes() for each in pages_in(folder)}
    names = list(contents)
    for index, (path, data) in enumerate(contents.items()):
        if damage in ("a folder", "a link"):
            path.unlink()
            path.mkdir() if damage == "a folder" else path.symlink_to(folder / "secret")
            continue
        changed = {
            "a flipped bit": data[:-1] + bytes([data[-1] ^ 1]),
            "cut short": data[:-1],
            "longer": data + b"x",
            "empty": b"",
            "another page": contents[names[index - 1]],
        }[damage]
        path.write_bytes(changed)
    again, backend, _ = make(folder)
    with caplog.at_level(logging.WARNING, "herd.engine.disk"):
        assert ask(again) == first
    assert backend.computed == len(PROMPT) + 5
    assert "cannot be used and is removed" in caplog.text
    again.close()


def test_the_folder_keeps_its_limit_and_loses_what_was_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_files, "LOOK_AGAIN_S", 0.0)
    engine, _, pages = make(tmp_path / "c", limit=6 * (PAGE_BYTES + 40), num_pages=16)
    ask(engine, PROMPT)
    tidied(engine, pages)
    for path in pages_in(tmp_path / "c"):
        os.utime(path, (1, 1))
    ask(engine, OTHER)
    tidied(engine, pages)
    left = pages_in(tmp_path / "c")
    assert len(left) == 6 and pages.num_bytes == sum(path.stat().st_size for path in left) <= 6 * (PAGE_BYTES + 40)
    assert not any(path.stat().st_mtime < 10 for path in left)
    engine.close()


def test_a_full_disk_costs_pages_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _, pages = make(tmp_path / "c")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_files.os, "replace", full)
    with caplog.at_level(logging.WARNING, "herd.engine.disk"):
        first = ask(engine)
        tidied(engine, pages)
    assert caplog.text.count("the disk is full") == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["secret"]
    assert ask(engine) == first
    monkeypatch.undo()
    engine.close()


def test_files_are_for_their_user_alone_and_a_folder_that_is_not_is_refused(tmp_path: Path) -> None:
    engine, _, _ = make(tmp_path / "c")
    ask(engine)
    engine.close()
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()} == {0o600}
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UsageError, match="open to others"):
        opened(tmp_path / "open", b"", 64, 1 << 20)


def test_folders_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot hold a cache"):
        opened(tmp_path / "file", b"", 64, 1 << 20)
    with pytest.raises(CapacityError, match="one page of this model takes"):
        opened(tmp_path / "c", b"", 64, 100)
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "secret").write_bytes(b"short")
    with pytest.raises(UsageError, match="expected 32"):
        opened(tmp_path / "d", b"", 64, 1 << 20)


def test_unfinished_files_of_those_who_died_are_removed(tmp_path: Path) -> None:
    opened(tmp_path / "c", b"", 64, 1 << 20).close()
    old, new = (tmp_path / "c" / f".{digit * 16}.part" for digit in "ab")
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 10_000,) * 2)
    (tmp_path / "c" / "mine.txt").write_text("left alone")
    opened(tmp_path / "c", b"", 64, 1 << 20).close()
    assert not old.exists() and new.exists() and (tmp_path / "c" / "mine.txt").exists()


def test_what_was_read_for_a_cancelled_request_is_given_back(tmp_path: Path) -> None:
    engine, _, _ = make(tmp_path / "c")
    ask(engine)
    engine.close()
    again, _, pages = make(tmp_path / "c", max_waiting=1)
    request = Request(tokens=PROMPT, sampling=SamplingParams(temperature=0.0), max_tokens=2)
    sequence = again.submit(request)
    assert len(sequence.stored) == 4 and pages._held_bytes > 0
    with pytest.raises(Exception, match="waiting already"):
        again.submit(request)
    again.cancel(sequence)
    assert not sequence.stored and pages._held_bytes == 0
    all_back(again)
    again.close()


def test_new_weights_forget_the_folder(tmp_path: Path) -> None:
    engine, backend, _ = make(tmp_path / "c")
    ask(engine)
    engine.close()
    again, backend, _ = make(tmp_path / "c")
    again.update({})
    ask(again)
    assert backend.computed == len(PROMPT) + 5
    again.close()


def test_memory_is_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that finds no room in the queue is forgotten, and one that finds none among those that are held is computed."""
    files = PageFiles(tmp_path / "c", b"one", PAGE_BYTES, LIMIT)
    pages = DiskPages(files, 0)
    assert pages.memory_bytes == 2 * files.file_bytes
    slow, whole = threading.Event(), PageFiles.write

    def write(self: PageFiles, name: str, contents: bytes) -> None:
        assert slow.wait(10)
        whole(self, name, contents)

    monkeypatch.setattr(PageFiles, "write", write)
    assert pages.has_room and pages.keep(b"x", bytes(PAGE_BYTES))
    assert not pages.has_room and not pages.keep(b"y", bytes(PAGE_BYTES)) and not pages.has(b"y")
    slow.set()
    pages.flush(10)
    assert pages.has_room and pages.keep(b"y", bytes(PAGE_BYTES))
    pages.flush(10)
    assert pages.read([b"x", b"y"]) == [bytes(PAGE_BYTES)] and pages.read([b"y"]) == []
    pages.forget(1)
    assert pages.read([b"y"]) == [bytes(PAGE_BYTES)]
    pages.forget(1)
    assert pages._held_bytes == 0
    pages.close()


def hanging(monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Has the disk not answer before the event, and the cache notice it after so long."""
    answers, whole = threading.Event(), PageFiles.read

    def read(self: PageFiles, name: str) -> bytes | None:
        assert answers.wait(20)
        return whole(self, name)

    monkeypatch.setattr(on_disk, "HANGS_S", seconds)
    monkeypatch.setattr(PageFiles, "read", read)
    return answers


def test_a_disk_that_does_not_answer_is_set_aside_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _, _ = make(tmp_path / "c")
    first = ask(engine)
    engine.close()
    answers = hanging(monkeypatch, 0.1)
    again, backend, pages = make(tmp_path / "c")
    with caplog.at_level(logging.WARNING, "herd.engine.disk"):
        began = time.monotonic()
        assert ask(again) == first
        ask(again, OTHER)
        assert ask(again) == first and time.monotonic() - began < 1.5
    assert caplog.text.count("does not answer") == 1 and backend.computed >= len(PROMPT) + len(OTHER)
    assert not pages.has_room and pages._held_bytes == 0
    answers.set()
    assert until(lambda: pages.has_room)
    before = backend.computed
    ask(again, OTHER)
    assert ask(again) == first and backend.computed - before < len(OTHER) + len(PROMPT)
    all_back(again)
    again.close()
    assert not pages._writer.is_alive() and pages._reader is not None and not pages._reader.is_alive()


def test_requests_that_wait_for_a_disk_that_hangs_go_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = opened(tmp_path / "c", b"one", PAGE_BYTES, LIMIT)
    for key in (b"x", b"y"):
        pages.keep(key, bytes(PAGE_BYTES))
    pages.flush(10)
    answers = hanging(monkeypatch, 0.2)
    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda key=key: found.append(pages.read([key]))) for key in (b"x", b"y", b"x")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert found == [[], [], []] and pages._held_bytes == 0
    answers.set()
    pages.close()


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_a_part_of_the_memory_is_for_pages_on_their_way(tmp_path: Path) -> None:
    """And it is told: in the memory that a model says it takes."""
    with load(STORIES, backend="reference", parallel=8, cache_bytes=4 << 20, cache_folder=tmp_path / "c") as model:
        held = model.memory()
        assert held.other["disk_buffers"] == 1 << 20 and 2 << 20 < held.cache <= 3 << 20
    with load(STORIES, backend="reference", cache_folder=tmp_path / "c") as model:  # no more than there are pages for
        held = model.memory()
        assert held.cache < held.other["disk_buffers"] < 1.6 * held.cache
    with load(STORIES, backend="reference", cache_bytes=4 << 20) as model:
        assert "disk_buffers" not in model.memory().other
    with pytest.raises(CapacityError, match="on their way to and from the disk"):
        load(STORIES, backend="reference", cache_bytes=1 << 16, cache_folder=tmp_path / "c")


def test_a_folder_that_is_removed_costs_pages_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page_files, "LOOK_AGAIN_S", 0.0)
    engine, _, pages = make(tmp_path / "c")
    first = ask(engine)
    tidied(engine, pages)
    shutil.rmtree(tmp_path / "c")
    with caplog.at_level(logging.WARNING, "herd.engine.disk"):
        ask(engine, OTHER)
        tidied(engine, pages)
        assert not pages._queued and pages._writer.is_alive() and pages.num_bytes == 0
    assert "A page cannot be written to the cache" in caplog.text
    assert ask(engine) == first
    (tmp_path / "c").mkdir(mode=0o700)
    assert pages.keep(b"later", bytes(PAGE_BYTES))
    pages.flush(10)
    assert len(pages_in(tmp_path / "c")) >= 1 and pages.read([b"later"]) == [bytes(PAGE_BYTES)]
    pages.forget(1)
    all_back(engine)
    engine.close()
    assert not pages._writer.is_alive()


def test_a_folder_named_like_an_unfinished_file_is_left_alone(tmp_path: Path) -> None:
    odd = tmp_path / "c" / f".{'a' * 16}.part"
    (tmp_path / "c").mkdir(mode=0o700)
    odd.mkdir()
    os.utime(odd, (1, 1))
    opened(tmp_path / "c", b"", 64, 1 << 20).close()
    assert odd.is_dir()


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(page_files.os, "scandir", refused)
    with pytest.raises(UsageError, match="Permission denied"):
        opened(tmp_path / "c", b"", 64, 1 << 20)


def test_nobody_waits_while_the_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is lost meanwhile stays lost."""
    pages = opened(tmp_path / "c", b"one", PAGE_BYTES, LIMIT)
    for key in (b"x", b"y"):
        pages.keep(key, bytes(PAGE_BYTES))
    pages.flush(10)
    listed, going_on = threading.Event(), threading.Event()
    whole = pages._files._listed

    def slow() -> list[tuple[int, str, int]]:
        found = whole()
        listed.set()
        assert going_on.wait(10)
        return found

    monkeypatch.setattr(page_files, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(pages._files, "_listed", slow)
    pages.keep(b"z", bytes(PAGE_BYTES))
    assert listed.wait(10)
    assert pages.has(b"x") and pages.has(b"z")  # would wait for ever
    pages._files._remove(pages._files.name(b"x"))
    going_on.set()
    pages.flush(10)
    assert [pages.has(key) for key in (b"x", b"y", b"z")] == [False, True, True]
    assert pages.num_bytes == sum(path.stat().st_size for path in pages_in(tmp_path / "c"))
    pages.close()


def test_a_page_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pages = opened(tmp_path / "c", b"one", PAGE_BYTES, LIMIT)
    pages.keep(b"x", bytes(PAGE_BYTES))
    pages.flush(10)

    def too_many(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "herd.engine.disk"):
        patch.setattr(page_files.os, "open", too_many)
        assert pages.read([b"x"]) == [] and not pages.has(b"x")
    assert "cannot be read from the cache" in caplog.text and len(pages_in(tmp_path / "c")) == 1
    pages._files.look()
    assert pages.read([b"x"]) == [bytes(PAGE_BYTES)]
    pages.close()


@pytest.mark.skipif(os.name != "posix", reason="owners are checked on posix")
def test_what_belongs_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "c", b"", 64, 1 << 20).close()
    (tmp_path / "mine").symlink_to(tmp_path / "c")
    opened(tmp_path / "mine", b"", 64, 1 << 20).close()
    with monkeypatch.context() as patch:
        patch.setattr(page_files.os, "geteuid", lambda: 12345)
        with pytest.raises(UsageError, match="belongs to another user"):
            opened(tmp_path / "c", b"", 64, 1 << 20)
    (tmp_path / "c" / "secret").rename(tmp_path / "secret")
    (tmp_path / "c" / "secret").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="cannot hold a cache"):
        opened(tmp_path / "c", b"", 64, 1 << 20)


def test_a_limit_without_a_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="Name a cache_folder too"):
        load("nothing", cache_disk_bytes=1 << 30)


def test_a_model_that_is_lost_or_fails_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def writers() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "pages to the disk"}

    before = writers()
    model = load(STORIES, cache_folder=tmp_path / "c")
    assert writers() - before
    del model
    gc.collect()
    assert not writers() - before
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(STORIES, cache_folder=tmp_path / "c")
    assert not writers() - before
