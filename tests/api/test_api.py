"""The Python face, on the smallest real model and on tiny random ones."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from cli import chat_model
from cli.running import STORIES, environment
from conformance.running import cpu_is_built
from herd.backends.base import Plan, Span
from herd.errors import CapacityError, FileProblem, UsageError
from herd.family.catalogue import find
from herd.family.finding import Found
from herd.files import models_folder
from herd.providers.base import CompletionRequest
from herd.sampling.stop import StopReason
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

ONCE = "Once upon a time"
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here"))]


@pytest.fixture(scope="module")
def model() -> Any:
    with herd.load(STORIES, backend="reference") as loaded:
        yield loaded


def test_logits_are_of_all_positions_after_the_whole_model(model: herd.Model) -> None:
    ids = model.tokenizer.encode(ONCE)
    logits_TV = model.logits(ids)
    assert logits_TV.dtype == np.float32 and logits_TV.shape == (len(ids), model.config.vocab_size)
    long_TV = model.logits(ids * 40)
    assert long_TV.shape == (len(ids) * 40, 512)
    assert np.allclose(long_TV[: len(ids)], logits_TV, atol=1e-4)


def test_the_tokenizer_goes_there_and_back(model: herd.Model) -> None:
    ids = model.tokenizer.encode(ONCE, bos=False)
    assert model.tokenizer.decode(ids) == ONCE and model.tokenizer.encode(ONCE) == [1, *ids]


def test_a_greedy_answer_is_the_likeliest_token_each_time(model: herd.Model) -> None:
    out = model.generate(ONCE, max_tokens=10, temperature=0.0)
    ids = [*out.prompt_token_ids, *out.token_ids]
    rows = model.logits(ids).astype(np.float64)
    table = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    first = len(out.prompt_token_ids)
    assert out.token_ids == [int(table[at - 1].argmax()) for at in range(first, len(ids))]
    assert out.logprobs == pytest.approx([table[at - 1, ids[at]] for at in range(first, len(ids))], abs=1e-4)
    assert out.stop_reason is StopReason.LENGTH and out.text == model.tokenizer.decode(list(ids))[len(ONCE) :]
    assert (out.usage.prompt_tokens, out.usage.completion_tokens) == (first, 10)


def test_log_probabilities_are_those_before_temperature(model: herd.Model) -> None:
    ids = model.tokenizer.encode(ONCE)
    row = model.logits(ids)[-1].astype(np.float64)
    out = model.generate(ids, max_tokens=1, temperature=3.0, top_k=0, top_p=1.0, seed=5, logprobs=3)
    table = row - np.log(np.exp(row).sum())
    assert out.logprobs[0] == pytest.approx(table[out.token_ids[0]], abs=1e-4)
    assert [token for token, _ in out.top[0]] == np.argsort(-table)[:3].tolist()


def test_a_seed_that_was_not_given_is_returned_and_repeats_the_answer(model: herd.Model) -> None:
    out = model.generate(ONCE, max_tokens=8, temperature=1.5)
    assert model.generate(ONCE, max_tokens=8, temperature=1.5, seed=out.seed).token_ids == out.token_ids


def test_a_stop_text_ends_the_answer_before_it(model: herd.Model) -> None:
    out = model.generate(ONCE, max_tokens=40, temperature=0.0, stop="girl")
    assert out.stop_reason is StopReason.STOP_TEXT and out.stop_text == "girl" and out.text.endswith("little ")


def test_sampling_that_is_not_given_is_the_model_s_own(model: herd.Model) -> None:
    assert (model.sampling({}).temperature, model.sampling({}).top_p) == (0.6, 0.9)
    assert (model.sampling({"temperature": None, "top_p": 0.5}).temperature, model.sampling({"top_p": 0.5}).top_p) == (0.6, 0.5)
    assert model.sampling({"temperature": 0.0}).temperature == 0.0


def test_a_misspelled_parameter_is_refused_with_the_right_name(model: herd.Model) -> None:
    for wrong, right in (("max_token", "max_tokens"), ("stops", "stop"), ("temprature", "temperature")):
        with pytest.raises(UsageError, match=f"'{wrong}' is not a sampling parameter; did you mean '{right}'"):
            model.generate(ONCE, **{wrong: 3})


def test_a_release_recommends_its_own_sampling(model: herd.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_found", Found("x", Path(STORIES), find("smollm2-135m-instruct")))
    assert model.recommended_sampling() == {"temperature": 0.2, "top_p": 0.9}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": ["x"] * 17}, "at most 16"),
        ({"stop": ""}, "stop contains"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"logit_bias": {99999: 1.0}}, "99999"),
    ],
)
def test_impossible_requests_are_refused(model: herd.Model, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate(ONCE, **arguments)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("prompt", [[], [512], [-1], [1.5], ["a"], [True], [2**70], "x" * 5000, 7, None])
def test_impossible_prompts_are_refused(model: herd.Model, prompt: Any) -> None:
    with pytest.raises(UsageError):
        model.generate(prompt, max_tokens=1)
    if isinstance(prompt, list):
        with pytest.raises(UsageError):
            model.logits(prompt)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"backend": "gpu"}, "It must be 'cpu' or 'torch' or 'reference'"),
        ({"backend": "referense"}, "did you mean 'reference'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"dtype": "bf16"}, "dtype is 'bf16'"),
        ({"activations": "int4"}, "activations is 'int4'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 2.0}, "threads is 2.0"),
        ({"threads": True}, "threads is True"),
        ({"context": 513, "backend": "reference"}, "trained for 512"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        herd.load(STORIES, **settings)
    assert complaint in str(caught.value)


def test_a_context_can_be_shorter(model: herd.Model) -> None:
    with herd.load(STORIES, backend="reference", context=16) as short:
        assert short.provider.facts.context_length == 16
        assert short.generate([1], temperature=0.0).usage.completion_tokens == 15
        with pytest.raises(UsageError):
            short.generate([1] * 17)


def test_a_chat_is_a_stream_of_events(tmp_path: Path) -> None:
    with herd.load(chat_model.write(tmp_path / "m"), backend="reference") as model:
        messages = [{"role": "user", "content": "Hi <|im_end|>"}]
        events = list(model.chat(messages, max_tokens=5, temperature=0.0))
        assert [event.type for event in events[:-1]] == ["text"] * (len(events) - 1) and events[-1].type == "finished"
        ids = model.chat_token_ids(model.chat_request(messages))
        assert ids.count(model.tokenizer.special_ids["<|im_end|>"]) == 1
        for wrong in ([], [{"role": "boss", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": "x", "name": "y"}]):
            with pytest.raises(UsageError):
                model.chat(wrong)


def test_a_chat_that_is_closed_early_gives_its_pages_back(tmp_path: Path) -> None:
    with herd.load(chat_model.write(tmp_path / "m"), backend="reference") as model:
        events = model.chat([{"role": "user", "content": "Hi"}], max_tokens=50)
        next(events)
        events.close()  # type: ignore[attr-defined]
        model._engine.check()
        assert model._engine.load.owned_pages == 0


def test_a_base_model_does_not_chat(model: herd.Model) -> None:
    with pytest.raises(UsageError, match="no chat format"):
        model.chat([{"role": "user", "content": "Hi"}])


def test_a_folder_without_a_tokenizer_loads_and_generates_from_ids(tmp_path: Path) -> None:
    cfg = tiny_llama()
    with herd.load(write_huggingface(tmp_path / "m", cfg, random_leaves(cfg)), backend="reference") as model:
        assert not model.has_tokenizer
        out = model.generate([1, 2, 3], max_tokens=4, temperature=0.0)
        assert len(out.token_ids) == len(out.logprobs) == 4
        for ask in (lambda: model.tokenizer, lambda: out.text, lambda: model.generate("text")):
            with pytest.raises(FileProblem, match="without a tokenizer"):
                ask()


def test_the_same_weights_from_a_file_and_a_folder_give_the_same_logits(tmp_path: Path) -> None:
    cfg = tiny_llama()
    leaves = random_leaves(cfg)
    with (
        herd.load(write_gguf(tmp_path / "m.gguf", cfg, leaves), backend="reference") as file,
        herd.load(write_huggingface(tmp_path / "m", cfg, leaves), backend="reference") as folder,
    ):
        assert (file.name, file.checkpoint.layout, folder.checkpoint.layout) == ("m", "gguf", "huggingface")
        assert np.array_equal(file.logits([5, 6, 7]), folder.logits([5, 6, 7]))


def test_a_model_of_the_models_folder_is_loaded_by_name() -> None:
    folder = models_folder() / "mine"
    cfg = tiny_llama()
    write_huggingface(folder, cfg, random_leaves(cfg))
    with herd.load("mine", backend="reference") as model:
        assert model.name == "mine" and model.path == folder


def test_facts_memory_and_fingerprint_are_told(model: herd.Model) -> None:
    assert model.facts["num_layers"].value == 5 and "stories260K.bin" in model.facts["num_layers"].source
    assert model.memory().weights > 0 and "reference" in model.fingerprint and "stories260K" in repr(model)
    assert model.provider.facts.sources["num_layers"] == model.facts["num_layers"].source


def test_files_that_do_not_say_how_they_chat_can_be_told() -> None:
    with herd.load(STORIES, backend="reference", chat_format="llama2") as model:
        assert model.chat_format.name == "llama2"
        events = list(model.chat([{"role": "user", "content": "hi"}], max_tokens=2))
        assert events[-1].type == "finished"
    with pytest.raises(UsageError, match=r"chat_format is llama3\.1, .* needs the control token <\|begin_of_text\|>"):
        herd.load(STORIES, backend="reference", chat_format="llama3.1")
    with herd.load(STORIES, backend="reference") as silent, pytest.raises(UsageError, match=r'chat_format="llama3\.1"'):
        silent.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(UsageError, match=r"chat_format is 'llama3.11'; did you mean 'llama3.1'\?"):
        herd.load(STORIES, backend="reference", chat_format="llama3.11")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_model_is_closed_once_and_for_all(backend: str) -> None:
    model = herd.load(STORIES, backend=backend)
    model.close()
    model.close()
    assert model.memory().cache == 0
    with pytest.raises(UsageError, match="closed"):
        model.generate([1], max_tokens=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_may_end_without_closing_its_model(backend: str, tmp_path: Path) -> None:
    program = (
        "import herd, sys\n"
        "model = herd.load(sys.argv[1], backend=sys.argv[2])\n"
        "print(model.generate([1, 2, 3], max_tokens=2, temperature=0.0).token_ids)\n"
    )
    words = [sys.executable, "-c", program, str(STORIES), backend]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment(HERD_HOME=str(tmp_path)))
    assert done.returncode == 0 and done.stdout.startswith("[") and done.stderr == ""


def test_a_model_that_is_lost_gives_its_files_back_but_not_under_a_stream() -> None:
    model = herd.load(STORIES, backend="reference")
    backend = model._engine.backend
    events = model.provider.complete(CompletionRequest(prompt=[1], sampling=model.sampling({"temperature": 0.0}), max_tokens=3))
    del model
    assert [event.type for event in events][-1] == "finished"
    del events
    gc.collect()
    with pytest.raises(UsageError, match="closed"):
        backend.step(Plan((Span(0, [1], [0], 1),)))


def test_a_damaged_folder_in_meta_s_own_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(b"x")
    with pytest.raises(FileProblem, match=r"consolidated.00.pth: begins with b'x' and not as a zip file"):
        herd.load(tmp_path)


def test_progress_is_silent_for_a_model_that_is_here() -> None:
    def told(name: str, done_bytes: int, total_bytes: int) -> None:
        raise AssertionError("nothing is fetched")

    herd.load(STORIES, backend="reference", progress=told).close()


def test_weights_that_cannot_fit_are_refused_up_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.engine.memory.available_bytes", lambda: 1_000_000)
    with pytest.raises(CapacityError, match="take 1,040,128 bytes; 1,000,000 are available"):
        herd.load(STORIES, backend="reference")


def test_values_of_the_wrong_kind_are_refused_by_name(model: herd.Model) -> None:
    for wrong in (5, None, 1.5, "text"):
        with pytest.raises(UsageError, match=r"tokens is \w+; expected token ids"):
            model.logits(wrong)  # type: ignore[arg-type]
    for wrong in (["a"], [1.5], [None]):
        with pytest.raises(UsageError):
            model.logits(wrong)  # type: ignore[arg-type]
    for name, value in (("prompt", 5), ("prompt", None), ("stop", 5), ("stop", None), ("logit_bias", [1]), ("logit_bias", 7)):
        with pytest.raises(UsageError, match=f"{name} is "):
            model.generate(**{"prompt": [1], "max_tokens": 1, name: value})
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate([1], max_tokens="x")  # type: ignore[arg-type]
    for prompt in (["a"], [1.5], b"bytes\xff"[:0]):
        with pytest.raises(UsageError):
            model.generate(prompt, max_tokens=1)  # type: ignore[arg-type]
    assert model.logits(np.array([1, 2])).shape == (2, 512)  # type: ignore[arg-type]
