"""herd bench: shapes with random weights, bounds, engines in processes of their own, and what is told of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.running import REFERENCE, STORIES, invoke
from conformance.running import cpu_is_built
from herd.api import load
from herd.bench.bounds import BANDWIDTH, Bounds
from herd.bench.engines import Herd, Settings
from herd.bench.report import figures_of, rows_of, write_lines
from herd.bench.roofline import roofline
from herd.bench.shapes import FIRST_TOKEN, shape_of, write_shape
from herd.bench.tasks import Question, Seen, Wanted, measure, tasks_named
from herd.bench.workers import Worker, answered, first_token_s
from herd.checkpoints.open import open_checkpoint
from herd.dtypes import BF16, BY_NAME, F16
from herd.errors import ProviderError, UsageError
from herd.family.progress import silent
from herd.models.sizes import weight_bytes
from herd.models.weights import Kind
from tiny import tiny_llama, tiny_llama4

needs_cpu = pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")
LIMITS = {BANDWIDTH: 1e9, "int8": 1e12, "bf16": 5e11, "float32": 1e11}
SHORT = ("--prompt-tokens", "8", "--decode-tokens", "4", "--rounds", "1", "--peers", "none")


def tiny_shape(monkeypatch: pytest.MonkeyPatch, config: Any) -> Any:
    """The shape of a release as if it were this small."""
    monkeypatch.setattr("herd.family.release.Release.config", lambda self: config)
    return shape_of("llama-3.2-1b", "q4_0")


def test_a_shape_is_a_file_that_opens_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny_shape(monkeypatch, tiny_llama(vocab_size=400))
    path = tmp_path / "model.gguf"
    write_shape(path, shape, silent)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == shape.config and checkpoint.num_bytes == weight_bytes(shape.config, shape.stored.chosen)
    assert {checkpoint.dtype(spec.name).name for spec in checkpoint.specs if spec.kind is Kind.MATRIX} == {"q4_0"}
    checkpoint.close()
    with load(path, backend="reference") as model:
        assert len(model.generate([FIRST_TOKEN + 1, FIRST_TOKEN + 2], max_tokens=3, temperature=0.0).token_ids) >= 1


def test_a_shape_of_experts_opens_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny_shape(monkeypatch, tiny_llama4(vocab_size=300))
    write_shape(tmp_path / "model.gguf", shape, silent)
    with load(tmp_path / "model.gguf", backend="reference") as model:
        assert model.config == shape.config and len(model.logits([260, 261])) == 2


def test_the_head_of_a_shape_has_six_bits_at_least() -> None:
    shape = shape_of("Llama-3.2-1B", "q4_0", 2)
    assert (shape.layers, shape.all_layers) == (2, 16) and "2 of 16 layers" in shape.title
    assert shape.stored.chosen(next(iter(_specs(shape.config)))).name == "q6_k"
    cut = shape_of("llama-4-scout", "q4_0", 3)
    assert cut.config.num_layers == 3 and all(layer < 3 for layer in cut.config.expert_layers)


def _specs(config: Any) -> Any:
    from herd.models.architecture import architecture_of

    return architecture_of(config).tensors(config)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("llama-3.2-1c", "q4_0", None), "llama-3.2-1b"),
        (("llama-3.2-1b", "q9", None), "The formats are"),
        (("llama-3.2-1b", "q4_0", 99), "has 16"),
        (("llama-3.2-11b-vision", "q4_0", None), "no GGUF file holds"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(words: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        shape_of(*words)


def test_decoding_experts_is_bound_by_the_bytes_of_those_that_a_token_meets() -> None:
    config = tiny_llama4()
    every = weight_bytes(config, BY_NAME["bf16"])
    bounds = Bounds(config, lambda spec: BF16, "int8", F16)
    experts = sum(2 * spec.count for spec in _specs(config) if spec.kind is Kind.EXPERTS)
    table = next(2 * spec.count for spec in _specs(config) if spec.kind is Kind.EMBEDDING)
    vision = sum(2 * spec.count for spec in _specs(config) if spec.name.startswith("vision."))
    rows = 2 * config.width
    active = every - vision - experts + experts / config.num_experts - table + rows
    assert bounds.weight_bytes() == pytest.approx(active)
    one, all_met = (bounds.of(Question("sequences", "", "tokens/s", sequences=count), LIMITS) for count in (1, 10**4))
    assert one is not None and all_met is not None and one.num_bytes < all_met.num_bytes


@pytest.mark.parametrize(
    ("kind", "activations", "has_bf16", "multiplied"),
    [
        ("q8_0", "int8", True, "int8"),
        ("q8_0", "float32", True, "float32"),
        ("bf16", "int8", False, "float32"),
        ("bf16", "int8", True, "bf16"),
        ("f16", "int8", True, "float32"),
    ],
)
def test_a_prompt_is_set_against_the_peak_of_what_is_multiplied(kind: str, activations: str, has_bf16: bool, multiplied: str) -> None:
    config = tiny_llama(vocab_size=500)
    bounds = Bounds(config, lambda spec: BY_NAME["f32"] if spec.kind.is_vector else BY_NAME[kind], activations, F16, has_bf16=has_bf16)
    assert bounds.kinds == (multiplied,)
    bound = bounds.of(Question("prompt", "", "tokens/s", tokens=1000), LIMITS)
    inner = sum(spec.count for spec in _specs(config) if spec.kind is Kind.MATRIX)
    head = config.width * config.vocab_size
    assert bound is not None and bound.operations == 2 * (1000 * inner + head)
    assert bound.seconds == pytest.approx(bound.operations / LIMITS[multiplied]) and multiplied in bound.what
    assert bounds.of(Question("start", "", "s"), LIMITS) is None
    assert bounds.of(Question("prompt", "", "tokens/s"), {BANDWIDTH: 1.0}) is None


def test_tasks_are_named_and_unknown_ones_refused() -> None:
    assert tasks_named("prompt, decode") == ("decode", "prompt") and len(tasks_named("all")) == 9
    with pytest.raises(UsageError, match="steps"):
        tasks_named("step")


class Fake:
    """A worker whose speeds are known."""

    abilities = frozenset({"answer", "step", "together"})

    def __init__(self, engine: str, settings: Settings) -> None:
        self.engine, self.version = engine, f"{engine}-1"
        self._pace = 1.0 if engine == "herd" else 2.0
        if engine == "openvino":
            raise ProviderError("openvino: it cannot")

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        return self._pace * len(tokens) / 1000, self._pace * (count - 1) / 100

    def step(self, context: int, tokens: Sequence[int]) -> float:
        return self._pace * (1 + 0.1 * len(tokens)) / 100

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        if self.engine == "llama.cpp" and len(prompts) == 32:
            raise ProviderError("llama.cpp: too many")
        return self._pace * count / 100

    def peak_bytes(self) -> int:
        return 10**8

    def close(self) -> None:
        pass


def seen_with_fakes(monkeypatch: pytest.MonkeyPatch, *tasks: str, peers: Sequence[str] = ("llama.cpp", "openvino")) -> Seen:
    monkeypatch.setattr("herd.bench.tasks.Worker", Fake)
    monkeypatch.setattr("herd.bench.tasks.first_token_s", lambda engine, settings, tokens: 0.5)
    settings = {name: Settings("m.gguf", 1) for name in ("herd", *peers)}
    return measure(settings, Wanted(tasks, 2, 512, 11, (300, 400), 8192), lambda: LIMITS, lambda text: None)


def test_rounds_become_medians_ratios_bounds_and_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = seen_with_fakes(monkeypatch, "decode", "steps", "prompt", "long-prompt", "context", "start", "memory")
    assert seen.notes == ["without openvino: openvino: it cannot"] and seen.versions == {"herd": "herd-1", "llama.cpp": "llama.cpp-1"}
    bounds = Bounds(tiny_llama(vocab_size=500), lambda spec: BY_NAME["f32"], "int8", F16)
    figures = {(each.name, each.engine): each for each in figures_of(seen, bounds)}
    assert figures["decode", "herd"].value == 100.0 and figures["decode", "herd / llama.cpp"].value == pytest.approx(2.0)
    assert figures["step of 8 tokens", "herd / llama.cpp"].value == pytest.approx(2.0)
    assert figures["cost of 8 tokens against 1", "herd"].value == pytest.approx(1.8 / 1.1)
    assert figures["prompt of 4096", "herd"].bound is not None and figures["peak memory", "herd"].bound is None
    assert len(figures["decode", "herd"].values) == 2 and figures["process start to first token", "llama.cpp"].value == 0.5
    assert figures["step of 1 token", "herd"].share == pytest.approx(figures["step of 1 token", "herd"].bound / 0.011)  # type: ignore[operator]
    assert len(rows_of(list(figures.values()))) == len(figures)
    write_lines(tmp_path / "out.json", list(figures.values()), {"model": "m"})
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert len(lines) == len(figures) and all(line["model"] == "m" and line["rounds"] >= 1 for line in lines)
    picture = roofline("a <title>", list(figures.values()), bounds, LIMITS)
    assert ElementTree.fromstring(picture).tag.endswith("svg") and "a &lt;title&gt;" in picture and picture.count("decode after 4096") == 1


def test_a_peer_that_fails_in_the_middle_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_with_fakes(monkeypatch, "sequences", peers=("llama.cpp",))
    assert seen.notes == ["without llama.cpp from here on: llama.cpp: too many"]
    assert {engine for by_engine in seen.values.values() for engine in by_engine} == {"herd"}
    assert [question.sequences for question in seen.values] == [8, 16, 32]


def test_memory_is_asked_of_an_engine_that_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Fake, "answer", lambda self, tokens, count: asked.append(len(tokens)) or (0.1, 0.0))
    seen = seen_with_fakes(monkeypatch, "memory", peers=())
    assert asked == [512] and [question.title for question in seen.values] == ["peak memory"]


def test_a_worker_answers_requests_about_its_engine() -> None:
    engine = Fake("herd", Settings("m", 1))
    assert answered(engine, {"do": "answer", "tokens": [1, 2], "count": 1}) == {"seconds": (0.002, 0.0)}
    assert answered(engine, {"do": "step", "context": 4, "tokens": [1]}) == {"seconds": pytest.approx(0.011)}
    assert answered(engine, {"do": "together", "prompts": [[1]], "count": 10}) == {"seconds": 0.1}
    assert answered(engine, {"do": "memory"})["bytes"] > 1_000_000


def test_an_engine_runs_in_a_process_of_its_own() -> None:
    settings = Settings(STORIES, 1, options={"backend": "reference"})
    worker = Worker("herd", settings)
    try:
        assert worker.version.startswith("reference") and worker.peak_bytes()
        first, rest = worker.answer([1, 300, 301], 4)
        assert first > 0 and rest > 0
        assert worker.step(8, [5, 6]) > 0 and worker.together([[1, 5], [1, 6, 7]], 3) > 0
    finally:
        worker.close()
    assert first_token_s("herd", settings, [1, 2]) > 0
    with pytest.raises(ProviderError, match=r"none\.gguf"):
        Worker("herd", Settings("./none.gguf", 1))


def test_the_command_times_a_model_without_limits_on_the_reference() -> None:
    done = invoke("bench", STORIES, *SHORT, "--json", *REFERENCE)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {figure["figure"] for figure in found["figures"]} == {"decode", "prompt of 8", "process start to first token", "peak memory"}
    assert all(figure["value"] > 0 and "bound" not in figure for figure in found["figures"])


@needs_cpu
def test_the_command_sets_a_model_against_this_machine(tmp_path: Path) -> None:
    files = ("--output", str(tmp_path / "out.json"), "--plot", str(tmp_path / "roof.svg"))
    done = invoke("bench", STORIES, *SHORT, "--threads", "1", "--what", "decode,prompt", *files)
    assert done.exit_code == 0 and "read bandwidth" in done.stdout and "MB read" in done.stdout, done.output
    assert (tmp_path / "roof.svg").read_text().startswith("<svg") and len((tmp_path / "out.json").read_text().splitlines()) == 4


@needs_cpu
def test_sequences_are_timed_together_or_not_at_all() -> None:
    prompts = [[1, 5, number] for number in range(6, 12)]
    small = {"context": 64}
    assert Herd(Settings(STORIES, 1, 64, 6, small)).together(prompts, 4) > 0
    with pytest.raises(ProviderError, match="no room for 6 sequences"):
        Herd(Settings(STORIES, 1, 64, 2, small)).together(prompts, 40)


@needs_cpu
def test_the_command_tells_where_the_time_of_a_step_goes() -> None:
    done = invoke("bench", STORIES, "--rounds", "1", "--peers", "none", "--threads", "1", "--what", "parts,steps", "--json")
    assert done.exit_code == 0, done.output
    figures = {figure["figure"]: figure["value"] for figure in json.loads(done.stdout)["figures"] if figure["unit"] == "s"}
    parts = {name.removeprefix("of a step of 1 token: "): value for name, value in figures.items() if name.startswith("of a step")}
    assert {"attention", "q, k, v", "gate, up", "outside"} <= parts.keys() and list(parts.values()) == sorted(parts.values(), reverse=True)
    assert all("bound" not in figure for figure in json.loads(done.stdout)["figures"] if figure["figure"].startswith("of a step"))


@needs_cpu
def test_the_command_measures_the_machine_alone(tmp_path: Path) -> None:
    done = invoke("bench", "limits", "--rounds", "1", "--threads", "1", "--json")
    assert done.exit_code == 0, done.output
    from herd.backends.cpu.limits import multiplies_bf16

    expected = {"read bandwidth", "int8", "float32"} | ({"bf16"} if multiplies_bf16() else set())
    assert set(json.loads(done.stdout)["limits"]) == expected


@needs_cpu
@pytest.mark.parametrize(
    ("has_bf16", "sentence"),
    [(False, "Weights in 16 bits are multiplied in float32."), (True, "Weights in float16 are multiplied in float32.")],
)
def test_limits_say_how_16_bits_are_multiplied_here(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, sentence: str) -> None:
    made = SimpleNamespace(threads=1, isa="some", multiplies_bf16=has_bf16)
    monkeypatch.setattr("herd.backends.cpu.machine.make_machine", lambda threads: made)
    monkeypatch.setattr("herd.cli.bench.measured_limits", lambda threads, kinds: dict.fromkeys(("read bandwidth", *kinds), 1e9))
    done = invoke("bench", "limits", "--rounds", "1")
    assert done.exit_code == 0 and sentence in done.stdout and ("\n  bf16 " in done.stdout) is has_bf16, done.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "Give a model, or a release's shape"),
        ((STORIES, "--shape", "llama-3.2-1b"), "Give a model, or a release's shape"),
        ((STORIES, "--layers", "2"), "--layers is for --shape"),
        ((STORIES, "--what", "everything"), "--what has 'everything'"),
        ((STORIES, "--what", "parts", *REFERENCE, "--peers", "none"), "Only the cpu backend times its instructions"),
        ((STORIES, "--peers", "vllm"), "--peers has 'vllm'"),
        ((STORIES, "--plot", "roof.png"), "must end in .svg"),
        ((STORIES, "--output", "./no/where.json"), "no folder"),
        ((STORIES, "--what", "context", *REFERENCE, "--peers", "none"), "The context has 512"),
        (("--shape", "llama-3.1-405b", "--quant", "f32"), "--layers 31"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(words: Sequence[str], complaint: str) -> None:
    done = invoke("bench", *words)
    assert done.exit_code in (2, 4) and complaint in done.stderr, done.output
