"""Prefilled sessions as files: the same bits as without a pause, and nobody else's."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import herd
from cli.running import STORIES
from conformance.running import cpu_is_built, torch_is_installed
from herd.api import sessions
from herd.errors import CapacityError, FileProblem, UsageError
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")),
    pytest.param("torch", marks=pytest.mark.skipif(not torch_is_installed(), reason="torch is not installed here")),
]
PROMPT = [1, *range(3, 150)]


@pytest.fixture(scope="module")
def model() -> Any:
    with herd.load(STORIES, backend="reference") as loaded:
        yield loaded


@pytest.fixture
def saved(model: herd.Model, tmp_path: Path) -> Path:
    path = tmp_path / "saved.session"
    model.save_session(path, PROMPT)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 148])
def test_a_session_goes_on_with_the_same_bits(backend: str, length: int, tmp_path: Path) -> None:
    prompt, path = PROMPT[:length], tmp_path / "s"
    with herd.load(STORIES, backend=backend) as first:
        whole = first.generate(prompt, max_tokens=12, temperature=0.8, seed=5)
        half = first.generate(prompt, max_tokens=5, temperature=0.8, seed=5)
        session = first.save_session(path, [*half.prompt_token_ids, *half.token_ids])
        assert session.computed == length + 5
    with herd.load(STORIES, backend=backend) as second:
        opened = second.open_session(path)
        assert opened.token_ids == session.token_ids and opened.computed == session.computed
        rest = second.generate(opened.token_ids, max_tokens=7, temperature=0.8, seed=5)
        assert [*half.token_ids, *rest.token_ids] == whole.token_ids
        assert [*half.logprobs, *rest.logprobs] == (whole.logprobs if backend == "cpu" else pytest.approx(whole.logprobs, abs=1e-5))
        # The last token is computed again, and with it the page that it ends.
        assert rest.usage.cached_tokens == (length + 5 - 1 if (length + 5) % 64 else length + 5 - 64)


@pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")
@pytest.mark.parametrize("kv_cache", ["float16", "int8", "int4"])
def test_a_cache_of_few_bits_goes_on_with_the_same_bits(kv_cache: str, tmp_path: Path) -> None:
    with herd.load(STORIES, kv_cache=kv_cache) as first:
        whole = first.generate(PROMPT, max_tokens=8, temperature=0.0)
        first.save_session(tmp_path / "s", [*PROMPT, *whole.token_ids[:3]])
    with herd.load(STORIES, kv_cache=kv_cache) as second:
        rest = second.generate(second.open_session(tmp_path / "s").token_ids, max_tokens=5, temperature=0.0)
        assert (rest.token_ids, rest.logprobs) == (whole.token_ids[3:], whole.logprobs[3:])
    with herd.load(STORIES) as other, pytest.raises(UsageError, match=f"kv-{'f16' if kv_cache == 'float16' else kv_cache}"):
        other.open_session(tmp_path / "s")


def test_the_cache_is_what_was_saved_and_not_computed_again(model: herd.Model, saved: Path) -> None:
    with herd.load(STORIES, backend="reference") as other:
        other.open_session(saved)
        other.open_session(saved)  # once more takes nothing away
        assert other.generate(PROMPT, max_tokens=1).usage.cached_tokens == len(PROMPT) - 1
        assert other.generate([*PROMPT, 9, 9], max_tokens=1).usage.cached_tokens >= 128
        other._engine.check()


def test_a_conversation_stays_beside_its_tokens(model: herd.Model, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Grüß Gott"}]
    model.save_session(tmp_path / "s", "Once upon", messages=said)
    assert model.open_session(tmp_path / "s").messages == said


def test_a_prompt_that_fills_the_context_can_be_saved_and_not_continued(tmp_path: Path) -> None:
    with herd.load(STORIES, backend="reference", context=100) as small:
        assert small.save_session(tmp_path / "s", PROMPT[:100]).computed == 99
        with pytest.raises(UsageError, match="no room to go on"):
            small.open_session(tmp_path / "s")


def test_a_cache_that_is_too_small_says_so(saved: Path) -> None:
    with herd.load(STORIES, backend="reference") as loaded:
        books = loaded._engine._scheduler.pages
        taken = [books.take() for _ in range(books.num_pages - 1)]
        with pytest.raises(CapacityError, match="pages of cache are needed"):
            loaded.open_session(saved)
        assert len(taken) == books.num_pages - 1


def test_another_models_session_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    cfg = tiny_llama()
    write_gguf(tmp_path / "other.gguf", cfg, random_leaves(cfg))
    with (
        herd.load(tmp_path / "other.gguf", backend="reference") as other,
        pytest.raises(UsageError, match=r"weights are not those of other"),
    ):
        other.open_session(saved)


def test_one_changed_weight_makes_another_model(tmp_path: Path) -> None:
    cfg = tiny_llama()
    path = write_gguf(tmp_path / "model.gguf", cfg, random_leaves(cfg))
    with herd.load(path, backend="reference") as before:
        before.save_session(tmp_path / "s", [1, 2, 3])
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with herd.load(path, backend="reference") as after, pytest.raises(UsageError, match="weights are not those"):
        after.open_session(tmp_path / "s")


def test_the_same_model_elsewhere_opens_it(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bin"
    copy.write_bytes(Path(STORIES).read_bytes())
    with herd.load(copy, backend="reference") as moved:
        assert moved.open_session(saved).token_ids == PROMPT


def test_another_way_of_computing_is_refused_by_name(saved: Path) -> None:
    with (
        herd.load(STORIES, backend="reference", dtype="float64") as other,
        pytest.raises(UsageError, match=r"computed by 'reference .*float32.*float64"),
    ):
        other.open_session(saved)


def test_replaced_weights_have_no_session(tmp_path: Path) -> None:
    with herd.load(STORIES, backend="reference") as loaded:
        loaded._engine.update({})
        with pytest.raises(UsageError, match="changed since they were loaded"):
            loaded.save_session(tmp_path / "s", [1, 2])


def test_every_cut_of_a_session_is_refused(model: herd.Model, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for size in (0, 1, 8, 11, 19, 40, len(data) // 2, len(data) - 33, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(FileProblem, match="cut"):
            model.open_session(tmp_path / "cut")


def test_every_changed_byte_of_a_session_is_refused(model: herd.Model, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for at in [*range(0, 60), *range(60, len(data), len(data) // 40), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 0x41
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises((FileProblem, UsageError), match="changed"):
            model.open_session(tmp_path / "changed")


def resealed(body: bytes) -> bytes:
    return body + sessions.hashlib.sha256(body).digest()


def test_a_session_that_was_made_to_mislead_is_refused(model: herd.Model, saved: Path, tmp_path: Path) -> None:
    body = saved.read_bytes()[: -sessions.DIGEST_BYTES]
    about_bytes = struct.unpack_from("<Q", body, 12)[0]
    first = 20 + about_bytes + 8
    path = tmp_path / "made"
    lies = {
        "a token id": body[:first] + struct.pack("<I", 10**6) + body[first + 4 :],
        "computed of 148 tokens": body.replace(b'"computed": 148', b'"computed": 140')[:-64],
        "computed of 147 tokens": body[: first - 8] + struct.pack("<Q", 147) + body[first:-4],
        "object of other fields": body.replace(b'"computed"', b'"unheard!"'),
        "list of": body[: first - 8] + struct.pack("<Q", 2**60) + body[first:],
        "length of the description": body[:12] + struct.pack("<Q", 2**62) + body[20:],
    }
    for complaint, lie in lies.items():
        path.write_bytes(resealed(lie))
        with pytest.raises(FileProblem, match=complaint):
            model.open_session(path)


def test_a_session_that_cannot_be_written_leaves_the_old_one(model: herd.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fails(page: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr(model._engine.backend, "read_page", fails)
    with pytest.raises(MemoryError):
        model.save_session(saved, [5, 6])
    assert saved.read_bytes() == before and not list(saved.parent.glob(".saved*"))
    monkeypatch.undo()
    model._engine.check()
    assert model.generate([5, 6], max_tokens=1).token_ids
