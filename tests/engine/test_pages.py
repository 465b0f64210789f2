"""The books of pages: who owns which, what is cached, and what goes first when room is needed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from herd.engine.memory import available_bytes, default_num_pages
from herd.engine.pages import Pages, first_key, next_key


def keys(*chunks: list[int], salt: bytes = b"") -> list[bytes]:
    chain = [first_key(salt)]
    for chunk in chunks:
        chain.append(next_key(chain[-1], chunk))
    return chain[1:]


def known(pages: Pages, *page_keys: bytes) -> list[int]:
    """Takes, names and releases a page for each key, the last first."""
    taken = []
    for key in page_keys:
        page = pages.take()
        assert page is not None
        pages.name(page, key)
        taken.append(page)
    for page in reversed(taken):
        pages.release(page)
    pages.check()
    return taken


def test_keys_depend_on_the_salt_and_on_all_tokens_before() -> None:
    assert len({*keys([1], [2]), *keys([2], [2]), *keys([1], [2], salt=b"x")}) == 6
    assert keys([1, 2], [3]) == keys([1, 2], [3])


def test_a_page_has_one_place() -> None:
    pages = Pages(2)
    first, second = pages.take(), pages.take()
    assert {first, second} == {0, 1} and pages.take() is None
    assert (pages.num_free, pages.num_owned, pages.num_cached) == (0, 2, 0)
    pages.release(0)
    pages.name(1, b"k")
    pages.release(1)
    assert (pages.num_free, pages.num_owned, pages.num_cached, pages.num_available) == (1, 0, 1, 2)
    pages.check()


def test_a_shared_page_stays_until_its_last_owner_leaves() -> None:
    pages = Pages(3)
    (page,) = known(pages, b"k")
    for _ in range(2):
        found = pages.page_of(b"k")
        assert found is not None and pages.page_of(b"other") is None
        pages.share(found)
    assert pages.owners(page) == 2 and pages.num_cached == 0
    pages.release(page)
    assert pages.owners(page) == 1 and pages.num_cached == 0
    pages.release(page)
    assert pages.num_cached == 1
    pages.check()


def test_ends_of_a_conversation_are_evicted_before_its_beginning() -> None:
    pages = Pages(3)
    chain = keys([1], [2], [3])
    known(pages, *chain)
    pages.take()
    assert len([key for key in chain if pages.page_of(key) is not None]) == 2
    pages.take()
    assert [pages.page_of(key) is not None for key in chain] == [True] + [False] * (len(chain) - 1)
    pages.check()


def test_what_was_used_last_is_evicted_last() -> None:
    pages = Pages(2)
    known(pages, b"old")
    known(pages, b"new")
    old = pages.page_of(b"old")
    assert old is not None
    pages.share(old)
    pages.release(old)
    pages.take()
    assert pages.page_of(b"old") is not None and pages.page_of(b"new") is None


def test_the_same_contents_are_known_once() -> None:
    pages = Pages(2)
    for _ in range(2):
        page = pages.take()
        assert page is not None
        pages.name(page, b"k")
    pages.release(0)
    pages.release(1)
    assert (pages.num_free, pages.num_cached) == (1, 1)
    pages.check()


def test_a_partly_filled_page_is_taken_over_and_then_unknown() -> None:
    pages = Pages(2)
    page = pages.take()
    assert page is not None
    pages.leave_tail(page, b"before", [1, 2, 3])
    pages.check()
    assert pages.tail(b"before", [1, 2, 9]) == (page, 2)
    assert pages.tail(b"before", [9]) is None and pages.tail(b"after", [1]) is None
    pages.take_over(page)
    assert pages.tail(b"before", [1]) is None and pages.owners(page) == 1
    pages.release(page)
    assert pages.num_free == 2
    pages.check()


def test_only_the_newest_partly_filled_page_is_kept_after_a_page() -> None:
    pages = Pages(3)
    for tokens in ([1], [2]):
        page = pages.take()
        assert page is not None
        pages.leave_tail(page, b"before", tokens)
        pages.check()
    assert pages.num_cached == 1 and pages.tail(b"before", [1]) is None and pages.tail(b"before", [2]) is not None


def test_forgetting_makes_everything_unowned_free() -> None:
    pages = Pages(4)
    known(pages, b"a", b"b")
    page = pages.take()
    assert page is not None
    pages.name(page, b"c")
    pages.forget_contents(page)
    pages.forget_cached()
    assert (pages.num_free, pages.num_owned) == (3, 1) and pages.page_of(b"a") is None
    pages.release(page)
    assert pages.num_free == 4
    pages.check()


def test_the_check_notices_a_page_in_two_places() -> None:
    pages = Pages(2)
    page = pages.take()
    assert page is not None
    pages._free.append(page)
    with pytest.raises(AssertionError, match="two places"):
        pages.check()


def test_random_use_keeps_the_sum() -> None:
    rng = random.Random(2)
    pages, owned = Pages(9), []
    for step in range(5000):
        if rng.random() < 0.5:
            page = pages.take()
            if page is not None:
                owned.append(page)
                if rng.random() < 0.6:
                    pages.name(page, b"%d" % rng.randrange(12))
        elif owned:
            page = owned.pop(rng.randrange(len(owned)))
            if pages.owners(page) == 1 and not pages.is_known(page) and rng.random() < 0.3:
                pages.leave_tail(page, b"%d" % rng.randrange(4), [step])
            else:
                pages.release(page)
        if rng.random() < 0.3:
            found = pages.page_of(b"%d" % rng.randrange(12))
            if found is not None:
                pages.share(found)
                owned.append(found)
        pages.check()
        assert pages.num_free + pages.num_owned + pages.num_cached == 9


def test_the_default_cache_is_one_context_or_a_quarter_of_the_memory() -> None:
    assert default_num_pages(100, 1, 1000, None) == 100
    assert default_num_pages(100, 1, 1000, 10**9) == 100
    assert default_num_pages(100, 1, 1000, 40_000) == 10
    assert default_num_pages(100, 1, 1000, 1) == 1


def test_available_memory_is_the_least_that_the_system_names(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3000 kB\n")
    assert available_bytes(tmp_path) == 3000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert available_bytes(tmp_path) == 3000 * 1024
    (group / "memory.max").write_text("51000\n")
    assert available_bytes(tmp_path) == 50000
    (group / "memory.max").write_text("500\n")
    assert available_bytes(tmp_path) == 0
    (tmp_path / "proc/meminfo").write_text("nonsense")
    (group / "memory.max").write_text("nonsense")
    assert available_bytes(tmp_path) != 0, "what the C library knows"


def write_group(folder: Path, limit: str, usage: int, stat: str, names: tuple[str, str] = ("memory.max", "memory.current")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(stat)


def test_pages_of_files_in_a_control_group_count_as_available(tmp_path: Path) -> None:
    write_group(tmp_path / "sys/fs/cgroup", "10000", 9000, "anon 2000\ninactive_file 3000\nactive_file 4000\nodd\n")
    assert available_bytes(tmp_path) == 8000
    write_group(tmp_path / "sys/fs/cgroup", "10000", 9000, "inactive_file 99999\n")
    assert available_bytes(tmp_path) == 10000, "never more than the limit"


def test_the_tightest_of_the_own_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/a\n0::/slice/scope\n")
    top = tmp_path / "sys/fs/cgroup"
    write_group(top / "slice/scope", "max", 10, "")
    write_group(top / "slice", "5000", 3000, "inactive_file 500\n")
    assert available_bytes(tmp_path) == 2500, "a limit above binds as well"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(top / "memory", str(2**63 - 4096), 10, "", names)
    assert available_bytes(tmp_path) == 2500, "version 1 writes no limit as a huge number"
    write_group(top / "memory/a", "4000", 3000, "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n", names)
    assert available_bytes(tmp_path) == 1300
    (tmp_path / "proc/self/cgroup").write_text("0::/../other\n")
    write_group(top, "700", 0, "")
    assert available_bytes(tmp_path) == 700, "a path out of the container is not followed"
