"""A model that several processes hold gives the answers of one process, says by name what it cannot do, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import herd
from backends.test_torch_divided import a_picture, plans, span, updates_for
from cli.running import environment
from herd.api.caching import cache_needs
from herd.backends.base import BackendOptions, Mortal, Picture, Placed, Plan, Watch
from herd.backends.torch import TorchBackend
from herd.backends.torch.ranks import starting
from herd.backends.torch.ranks.frames import Begin, FrameReader, Run, to_bytes
from herd.backends.torch.ranks.interrupts import uninterrupted
from herd.backends.torch.ranks.known import KnownPictures
from herd.backends.torch.ranks.leader import DividedBackend
from herd.checkpoints.open import open_checkpoint
from herd.convert import write_adapter
from herd.convert.trained import write_trained
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.errors import CapacityError, EngineLost, FileProblem, UsageError
from herd.sampling.params import SamplingParams
from server.raw import until
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama3_vision, tiny_llama4

EXACT = BackendOptions(activations="float32", threads=1, dtype="float64")
MODELS: dict[str, Any] = {
    "llama": lambda: tiny_llama(qkv_bias=True),
    "llama4": tiny_llama4,
    "crossing": tiny_llama3_vision,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("divided")


def written(folder: Path, name: str) -> tuple[Path, Any]:
    cfg = MODELS[name]()
    if not (folder / name).exists():
        write_trained(folder / name, cfg, random_leaves(cfg), tokenizer=None, chat_template=None, stop_ids=(), beside=None)
    return folder / name, cfg


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[DividedBackend]:
    """One for all tests that leave it as it was."""
    with divided(written(folder, "llama")[0]) as backend:
        yield backend


@contextmanager
def divided(path: Path, count: int = 2, pages: int = 8, **more: Any) -> Iterator[DividedBackend]:
    checkpoint = open_checkpoint(path)
    backend = DividedBackend(checkpoint, EXACT, count, **{"wait_s": 30, **more})
    try:
        backend.allocate(pages)
        yield backend
    finally:
        backend.close()
        checkpoint.close()


def whole(path: Path, pages: int = 8) -> TorchBackend:
    checkpoint = open_checkpoint(path)
    backend = TorchBackend(checkpoint.config, checkpoint.leaf, EXACT)
    backend.allocate(pages)
    return backend


def rows(backend: Any, plan: Plan) -> np.ndarray:
    return backend.step(Plan(plan.spans, want_logits=True)).logits_RV


def gone(*ids: int) -> bool:
    def is_alive(number: int) -> bool:
        try:
            return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return not any(map(is_alive, ids))


def test_two_processes_give_the_logits_of_one(folder: Path, llama: DividedBackend) -> None:
    same_logits(llama, whole(written(folder, "llama")[0]))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("name", "count"), [("crossing", 2), pytest.param("llama4", 2, marks=SLOW), pytest.param("llama", 4, marks=SLOW)])
def test_processes_give_the_logits_of_one(folder: Path, name: str, count: int) -> None:
    path, cfg = written(folder, name)
    alone = whole(path)
    with divided(path, count) as backend:
        same_logits(backend, alone)
        least, _ = cache_needs(open_checkpoint(path), {"backend": "torch", "dtype": "float32", "tensor_parallel": count})
        assert 2 * least == backend.page_bytes() == alone.page_bytes() * max(1, count // cfg.num_kv_heads)  # in 64 bits
        if name == "crossing":
            see_pictures(cfg, backend, alone)


def same_logits(backend: DividedBackend, alone: TorchBackend) -> None:
    backend.allocate(8)
    for plan in plans(300):
        np.testing.assert_allclose(rows(backend, plan), rows(alone, plan), rtol=0, atol=1e-6)  # float32 on the way out


def see_pictures(cfg: Any, backend: DividedBackend, alone: TorchBackend) -> None:
    """The picture goes over once, and is there for every later token."""
    placed = (Placed(a_picture(1, 32), (1,)),)
    for plan in (Plan((span(5, cfg.picture_id, 7, outputs=3, pictures=placed),)), Plan((span(9, start=3, pictures=placed),))):
        np.testing.assert_allclose(rows(backend, plan), rows(alone, plan), rtol=0, atol=1e-6)


def test_pages_adapters_weights_and_values_are_those_of_one_process(folder: Path, llama: DividedBackend) -> None:
    path, cfg = written(folder, "llama")
    alone, backend, whole_down = whole(path), llama, random_leaves(tiny_llama(qkv_bias=True))["layers.0.ffn.down"]
    backend.allocate(8)
    assert isinstance(backend, Mortal) and backend.lost is None and not isinstance(alone, Mortal)
    assert backend.page_bytes() == alone.page_bytes() and backend.fingerprint == f"{alone.fingerprint} tensor-parallel-2"
    prompt = Plan((span(*range(10, 74), outputs=1),))
    first = rows(backend, prompt)
    backend.write_page(5, memoryview(backend.read_page(0)))
    np.testing.assert_allclose(rows(backend, Plan((span(3, start=64, pages=(5, 6)),))), rows(backend, Plan((span(3, start=64),))))
    updates = updates_for(cfg)
    for each in (alone, backend):
        each.add_adapter("poems", updates)
    asked = Plan((span(1, 2, 3, adapter="poems"), span(4, 5, pages=(2, 3))))
    np.testing.assert_allclose(rows(backend, asked), rows(alone, asked), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="an adapter named 'poems' already"):
        backend.add_adapter("poems", updates)
    for each in (alone, backend):
        each.remove_adapter("poems")
        each.update({"layers.0.ffn.down": dense_f32(np.ones((cfg.width, cfg.ffn_width)) / 100)})
    assert not np.allclose(rows(backend, prompt), first, atol=1e-3)
    np.testing.assert_allclose(rows(backend, prompt), rows(alone, prompt), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="has shape"):
        backend.update({"layers.0.ffn.down": dense_f32(np.ones((3, 3)))})
    watched = Plan(prompt.spans, watch=Watch(read=frozenset(("layers.1.middle",))))
    np.testing.assert_allclose(backend.step(watched).values["layers.1.middle"], alone.step(watched).values["layers.1.middle"], atol=1e-5)
    assert "layers.0.attention.q" not in backend.value_names() and "final" in backend.value_names()
    with pytest.raises(UsageError, match=r"No process has the whole of layers\.0\.attention\.q"):
        backend.step(Plan(prompt.spans, watch=Watch(read=frozenset(("layers.0.attention.q",)))))
    with pytest.raises(UsageError, match="cannot be replaced"):
        backend.step(Plan(prompt.spans, watch=Watch(patch={"final": lambda x: x})))
    uses = backend.memory()
    assert uses.weights == uses.other["weights on device 1"] < alone.memory().weights * 0.6
    assert uses.cache + uses.other["cache on device 1"] == alone.memory().cache
    backend.update({"layers.0.ffn.down": whole_down})


def test_what_one_process_cannot_do_is_told_and_the_others_go_on(llama: DividedBackend) -> None:
    backend = llama
    with pytest.raises(CapacityError, match="cache pages of 64 tokens"):
        backend.allocate(2**50)
    backend.allocate(4)
    before = rows(backend, Plan((span(1, 2),)))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        backend.step(Plan((span(1, 9999),)))
    broken = np.full((320, 256), np.nan)
    kept = random_leaves(tiny_llama(qkv_bias=True))["head"]
    backend.update({"head": dense_f32(broken)})
    with pytest.raises(FileProblem, match="not a number to go on with"):
        backend.step(Plan((span(1, 2),)))
    backend.update({"head": kept})
    np.testing.assert_array_equal(rows(backend, Plan((span(1, 2),))), before)


@pytest.mark.parametrize("which", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=SLOW)])
def test_a_process_that_ends_or_hangs_ends_the_whole_by_name(folder: Path, which: signal.Signals) -> None:
    path, _ = written(folder, "llama")
    with divided(path, wait_s=2.0) as backend:
        (other,) = backend.process_ids
        backend.step(Plan((span(1),)))
        os.kill(other, which)
        if which is signal.SIGKILL:
            assert until(lambda: backend.lost is not None, 5)
        said = "was ended by SIGKILL" if which is signal.SIGKILL else "A step of this model failed in process 1 of 2"
        began = time.monotonic()
        with pytest.raises(EngineLost, match=f"{said}.*Load the model again"):
            backend.step(Plan((span(1),)))
        assert time.monotonic() - began < 8 and backend.lost is not None
        with pytest.raises(EngineLost, match=said):
            backend.allocate(4)
    assert gone(other)


@SLOW  # a pair of processes
def test_weights_that_only_some_could_take_are_not_answered_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cfg = written(folder, "llama")
    with divided(path) as backend:
        before = rows(backend, Plan((span(1),)))
        assert not backend._meeting.exists()
        monkeypatch.setattr(TorchBackend, "update", lambda *told: (_ for _ in ()).throw(CapacityError("no room")))
        with pytest.raises(EngineLost, match="is in some processes only: no room"):
            backend.update({"layers.0.ffn.down": dense_f32(np.ones((cfg.width, cfg.ffn_width)))})
        with pytest.raises(EngineLost):
            assert rows(backend, Plan((span(1),))) is not before


def test_an_order_that_fails_here_leaves_no_answer_to_it_behind(llama: DividedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.allocate(4)
    rows(llama, Plan((span(1, 2, 3),)))
    page = llama.read_page(0)
    with monkeypatch.context() as broken, pytest.raises(CapacityError):
        broken.setattr(TorchBackend, "write_page", lambda *told: (_ for _ in ()).throw(CapacityError("no room")))
        llama.write_page(1, memoryview(page))
    assert llama.read_page(0) == page
    llama.write_page(2, memoryview(page))
    assert llama.read_page(2) == page


LOADER = """
import sys, time
import herd
if __name__ == "__main__":
    model = herd.load(sys.argv[1], backend="torch", threads=1, tensor_parallel=2)
    print(*model.engine.backend.process_ids, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux shows them")
def test_others_end_with_the_first_process_however_it_ends(folder: Path) -> None:
    path, _ = written(folder, "llama")
    words = [sys.executable, "-c", LOADER, str(path)]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert first.stdout is not None
        (other,) = map(int, first.stdout.readline().split())
        assert not gone(other)
    finally:
        first.kill()
        first.communicate()
    assert until(lambda: gone(other), 10)


def test_a_model_is_loaded_and_answers_as_with_one_process_and_its_adapter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder with a file that is called as one of Python's modules."""
    path, cfg = written(folder, "llama")
    (tmp_path / "queue.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "poems", cfg, updates_for(cfg), base_model="m")
    found = []
    for count in (1, 2):
        options: dict[str, Any] = {"backend": "torch", "dtype": "float64", "threads": 1, "context": 256, "tensor_parallel": count}
        with herd.load(path, adapter=tmp_path / "poems", draft="lookup", **options) as model:
            answers = [model.generate([1, 2, 3, 1, 2, 3], max_tokens=24, temperature=0) for _ in range(2)]
            found.append([list(each.token_ids) for each in answers])
    assert found[0] == found[1] and found[0][0] == found[0][1] and len(found[0][0]) == 24


def test_many_at_once_with_a_cache_too_small_for_them_say_what_each_says_alone(folder: Path, llama: DividedBackend) -> None:
    random = np.random.default_rng(5)
    shared, own = ([int(each) for each in random.integers(0, 300, count)] for count in (64, 150))
    greedy, drawn = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=3)
    asked = [
        Request(tokens=[*shared, *own[50 * index : 50 * index + 50]], max_tokens=20, sampling=(greedy, drawn)[index % 2])
        for index in range(3)
    ]

    def answers(backend: Any) -> list[list[int]]:
        engine = Engine(backend, context_length=256, num_pages=5, max_step_tokens=64)
        sequences = [engine.submit(each) for each in asked]
        while engine.load.running or engine.load.waiting:
            engine.step()
        assert engine.load.preempted > 0 and all(each.error is None for each in sequences)
        again = engine.submit(asked[0])
        while engine.load.running or engine.load.waiting:
            engine.step()
        assert again.cached_tokens > 0
        engine.check()
        return [list(each.tokens) for each in (*sequences, again)]

    assert answers(llama) == answers(whole(written(folder, "llama")[0]))


@SLOW  # starts six processes
def test_a_process_that_cannot_begin_is_the_one_that_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them, which takes the others with it."""
    path, _ = written(folder, "llama")
    began = starting.Rank.__init__

    def begin(rank: starting.Rank, told: Begin, lost: Any) -> None:
        began(rank, replace(told, options={**told.options, "device": "nowhere"}) if told.index == 3 else told, lost)

    monkeypatch.setattr(starting.Rank, "__init__", begin)
    with pytest.raises(UsageError, match="device is 'nowhere'"), divided(path, 4):
        pass

    def end(rank: starting.Rank, told: Begin, lost: Any) -> None:
        began(rank, told, lost)
        if told.index == 3:
            rank.kill()

    monkeypatch.setattr(starting.Rank, "__init__", end)
    with (
        pytest.raises(EngineLost, match=r"Process 4 of 4 \(\d+\) of this model was ended by SIGKILL"),
        divided(written(folder, "llama")[0], 4),
    ):
        pass


def test_an_interrupt_in_the_midst_of_a_step_comes_at_its_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done = True
    assert done


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel is 0; it must be a whole number"),
        ({"tensor_parallel": 3}, "tensor_parallel is 3; the model's 8 heads do not divide by it"),
        ({"tensor_parallel": 2, "backend": "reference"}, "the reference backend holds a model in one process"),
        ({"tensor_parallel": 2, "device": "cuda:1"}, "it takes the GPUs 0 to 1: say 'cuda'"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_a_process_is_started(folder: Path, options: dict[str, Any], said: str) -> None:
    path, _ = written(folder, "llama")
    with pytest.raises(UsageError, match=said):
        herd.load(path, **{"backend": "torch", **options})


def test_compiling_is_refused_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_TORCH_COMPILE", "1")
    with pytest.raises(UsageError, match="HERD_TORCH_COMPILE=1 is for a model in one process"):
        herd.load(written(folder, "llama")[0], backend="torch", tensor_parallel=2)


def test_a_plan_is_the_same_on_the_other_side_and_pictures_go_over_once() -> None:
    ours, theirs, reader = KnownPictures(), KnownPictures(), FrameReader()
    picture = a_picture(1, 32)
    for number in range(12):
        other = a_picture(1, 32)
        other.digest = bytes([number])  # type: ignore[misc]
        given = Plan((span(1, 2, pictures=(Placed(picture, (0,)), Placed(other, (1,))), adapter="a"), span(3, start=9)), watch=Watch())
        sent = b"".join(to_bytes(Run(ours.told(given), False)))
        assert (len(sent) > 2 * 12000) is (number == 0)
        pieces = [sent[at : at + 1000] for at in range(0, len(sent), 1000)]
        (run,) = [frame for piece in pieces for frame in reader.feed(piece)]
        assert isinstance(run, Run) and not run.is_decoding
        came = theirs.heard(run.plan)
        first, second = came.spans
        assert (list(first.tokens), list(second.tokens), second.start, first.adapter) == ([1, 2], [3], 9, "a") and came.watch is not None
        seen: list[Picture] = [each.picture for each in first.pictures]
        assert [each.digest for each in seen] == [picture.digest, bytes([number])]
        assert all(np.array_equal(each.pixels, picture.pixels) for each in seen)
