"""`herd plan`, `herd licence` and `herd models --pick` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from cli.running import invoke
from herd.cli.licence import OPTIONS
from herd.dtypes import DType
from herd.planner.licence_answers import FIELDS


def told(*words: str) -> dict[str, Any]:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_model_may_be_an_argument_or_an_option() -> None:
    words = ("--context", "131072", "--users", "200", "--quant", "q4", "--device", "h100")
    assert told("plan", "--model", "llama-4-scout", *words) == told("plan", "llama-4-scout", *words)


def test_a_plan_is_printed_with_its_assumptions_and_warnings() -> None:
    output = invoke("plan", "llama-4-scout", "--context", "131072", "--users", "200", "--quant", "q4").output
    for piece in (
        "weights: experts",
        "keys and values: local layers",
        "NVIDIA H100 SXM",
        "Hosted services",
        "Assumed",
        "days old",
        "breaks even",
    ):
        assert piece in output
    assert all(len(line) <= 161 for line in output.splitlines())


def test_a_page_is_written(tmp_path: Path) -> None:
    target = tmp_path / "plan.html"
    result = invoke("plan", "llama-3.1-8b", "--device", "rtx-4090", "--html", str(target))
    assert result.exit_code == 0 and str(target) in result.output.replace("\n", "")
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_device_can_be_described_or_given_more_memory() -> None:
    words = ("plan", "llama-3.2-3b", "--quant", "q4")
    described = told(*words, "--device-memory", "24GiB", "--bandwidth", "1TB/s", "--compute", "165TFLOPS")
    assert described["devices"][0]["devices"] == 1
    assert told(*words, "--device", "desktop", "--device-memory", "32GiB")["devices"][0]["devices"] == 1


def test_a_short_context_shortens_the_conversation_that_nobody_gave_a_length() -> None:
    found = told("plan", "llama-4-scout", "--quant", "q4", "--context", "1024", "--device", "h100")
    assert (found["context"], found["prompt_tokens"], found["answer_tokens"]) == (1024, 768, 256)
    refused = invoke("plan", "llama-4-scout", "--context", "1024", "--prompt-tokens", "1000")
    assert refused.exit_code == 2 and "do not fit into a context of 1,024" in refused.output


def test_a_known_device_takes_a_price_and_a_power_of_ones_own() -> None:
    words = ("plan", "llama-3.1-8b", "--quant", "q4", "--device", "rtx-4090", "--price", "$0.30", "--power", "300W")
    cost = told(*words)["devices"][0]["cost"]
    assert cost["per_hour"] == [0.3, 0.3] and cost["watts"] == 300


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "llama-3.1-8b", "--context", "1M"), "made for up to 131,072 tokens"),
        (("plan", "lama-3.1-8b"), "did you mean"),
        (("plan", "--users", "3"), "Name a model"),
        (("plan", "llama-3.1-8b", "--model", "llama-3.2-1b"), "Two models are named"),
        (("plan", "smollm2-135m", "--quant", "q6_k"), "q6_k does not exist for smollm2-135m"),
        (("plan", "llama-3.1-8b", "--device", "h99"), "No device is known as 'h99'"),
        (("plan", "llama-3.1-8b", "--bandwidth", "1TB/s"), "described by all of"),
        (("plan", "llama-3.1-8b", "--price", "$1"), "belong to a device"),
        (("plan", "llama-3.1-8b", "--device", "rtx-4090", "--bandwidth", "1TB/s"), "is known by its bandwidth"),
        (("plan", "train", "llama-3.1-8b", "--tokens", "1M", "--device", "this-machine", "--device-memory", "1TB"), "is measured"),
        (("plan", "train", "llama-3.1-8b", "--tokens", "1M", "--device", "h100", "--compute", "1PFLOPS"), "is known by its bandwidth"),
        (("plan", "train", "llama-3.1-8b", "--tokens", "1M", "--method", "full", "--rank", "8"), "--rank is of LoRA"),
        (("plan", "llama-3.1-8b", "--users", "ten"), "--users is 'ten'"),
        (("plan", "train", "llama-3.1-8b", "--tokens", "10M", "--method", "rlhf"), "must be one of full"),
        (("plan", "train", "llama-3.1-8b", "--tokens", "10M", "--device", "desktop"), "--device-memory"),
        (("models", "--task", "chat"), "--task belongs to --pick"),
        (("models", "--pick", "llama"), "--pick chooses among all"),
        (("models", "--pick", "--memory", "16 bananas"), "--memory is '16 bananas'"),
        (("licence", "--use", "service"), "Name a model"),
        (("licence", "llama-3.1-8b", "--use", "servce"), "did you mean 'service'"),
        (("licence", "llama-3.1-8b", "--derivative", "maybe"), "--derivative is 'maybe'"),
    ],
)
def test_what_cannot_be_is_explained(words: tuple[str, ...], says: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2 and says in result.output


def test_a_model_that_was_never_released_gets_no_invented_plan() -> None:
    output = invoke("plan", "llama-4-behemoth").output
    assert "no plan can be made" in output and "not known" in output
    assert told("plan", "llama-4-behemoth")["is_released"] is False


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.backends.cpu import limits, reached
    from herd.engine import memory

    monkeypatch.setattr(limits, "measure_bandwidth", lambda threads: 40e9)
    monkeypatch.setattr(limits, "measure_int8", lambda threads: 1e12)
    monkeypatch.setattr(limits, "measure_float32", lambda threads: 2e11)
    monkeypatch.setattr(memory, "available_bytes", lambda: 8_000_000_000)
    asked = []

    def measure_layer(dtype: DType, kv_cache: str, threads: int | None) -> reached.Reached:
        asked.append((dtype.name, kv_cache))
        return reached.Reached(4e11 if dtype.is_block else 1e11, 1e11)

    monkeypatch.setattr(reached, "measure_layer", measure_layer)
    found = told("plan", "this-machine")
    assert asked.pop() == ("q4_0", "float16") and not asked and found["machine"]["products"] == {"q4_0": 4e11}
    assert found["machine"]["bandwidth"] == 40e9
    verdicts = {row["model"]: row["verdict"] for row in found["models"]}
    assert verdicts["llama-3.2-1b-instruct"].startswith("It runs here") and "does not fit" in verdicts["llama-3.3-70b-instruct"]
    one = told("plan", "this-machine", "--model", "llama-3.2-1b-instruct")
    assert one["format"] == "q4_0" and one["devices"][0]["expected"]["alone_tokens_per_s"] == pytest.approx(0.9 * 40e9 / 0.78e9, rel=0.15)
    plain = told("plan", "this-machine", "--model", "llama-3.2-1b-instruct", "--quant", "bf16")
    assert plain["cache_format"] == "f32" and asked[-1] == ("bf16", "float32")
    for other in ("bfloat16", "16-bit", "16"):
        assert told("plan", "this-machine", "--model", "llama-3.2-1b-instruct", "--quant", other)["cache_format"] == "f32"
    first = [each["devices"][0]["expected"]["first_token_s"] for each in (one, plain)]
    attention, products = 16 * 4 * 2048 * 1024**2 / 2 / 1e11, 2 * 0.973e9 * 1024
    assert first == [pytest.approx(attention + products / rate, rel=0.01) for rate in (4e11, 1e11)]
    assert any("GOPS: q4_0 400, attention 100" in line for line in one["assumed"]["speed"])
    assert "TOKENS/S" in invoke("plan", "this-machine").output
    assert "It runs here" in invoke("plan", "this-machine", "--model", "smollm2-135m-instruct").output


def test_training_is_planned() -> None:
    found = told("plan", "train", "llama-3.1-8b", "--method", "qlora", "--tokens", "10M", "--device", "rtx-4090")
    assert found["plans"][0]["layouts"][0]["devices"] == 1
    assert "operations a token" in invoke("plan", "train", "llama-3.1-8b", "--tokens", "10M").output
    described = ("--device-memory", "16GB", "--bandwidth", "500GB/s", "--compute", "80TFLOPS")
    (alone,) = told("plan", "train", "llama-3.2-1b", "--tokens", "10M", *described)["plans"]
    assert alone["device"] == "described" and alone["layouts"][0]["devices"] == 1
    small = ("--method", "full", "--tokens", "10M", "--device", "desktop", "--device-memory", "16GB")
    assert "It does not fit on desktop processor" in " ".join(invoke("plan", "train", "llama-3.1-8b", *small).output.split())


def test_a_ruling_is_printed_with_clauses_and_says_what_it_is_not() -> None:
    words = ("--users-per-month", "10M", "--use", "product", "--region", "eu", "--derivative", "yes", "--model-name", "Quokka")
    output = invoke("licence", "llama-3.1-8b", *words).output
    for piece in (
        "Allowed, with duties",
        "[1.b.iii]",
        "Built with Llama",
        "NOT MET",
        "not legal advice",
        "not open source",
        "use: derivative-model",
    ):
        assert piece in output
    rulings = told("licence", "llama-3.1-8b", *words)["rulings"]
    assert [each["answers"]["use"] for each in rulings] == ["product", "derivative-model"]
    assert rulings[1]["answers"]["distributes"] == "yes" and rulings[1]["unmet"] == ["name-prefix"]


def test_contradictions_are_pointed_out() -> None:
    found = told("licence", "llama-3.1-8b", "--use", "internal", "--distributes", "yes")["rulings"][0]
    assert found["verdict"] == "contradiction" and set(found["contradicting"]) == {"use", "distributes"}


def test_questions_are_asked_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.cli.output.is_terminal", lambda stream: True)
    result = invoke("licence", "llama-3.1-8b", typed="servce\nservice\neu\n\n10M\n\n")
    assert result.exit_code == 0
    assert "did you mean 'service'" in result.output and "2024-06" in result.output
    assert "use: service" in result.output and "Meta Platforms Ireland" in result.output
    whole = invoke("licence", typed="llama-3.1-8b\nservice\neu\n\n10M\n\n")
    assert whole.exit_code == 0 and "Which model?" in whole.output and "llama-3.1-8b, Llama 3.1" in whole.output


def test_every_answer_can_be_given_as_an_option() -> None:
    assert {"use", *(name for name, _, _ in OPTIONS)} == set(FIELDS)


def test_a_short_list_is_printed_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("models", "--pick", "--task", "chat", "--languages", "de", "--memory", "16GiB", "--region", "eu")
    assert told(*words)["candidates"][0]["name"] == "llama-3.1-8b-instruct"
    assert "1. llama-3.1-8b-instruct" in invoke(*words).output
    monkeypatch.setattr("herd.cli.output.is_terminal", lambda stream: True)
    asked = invoke("models", "--pick", typed="chat\nde\nn\n\n16GiB\neu\ninternal\n")
    assert asked.exit_code == 0 and "1. llama-3.1-8b-instruct" in asked.output
    assert "No model does all of this" in invoke("models", "--pick", "--task", "chat", "--memory", "1MB").output


def test_help_of_plans_leads_on() -> None:
    assert "herd plan model --help" in invoke("plan", "--help").output
    assert click.unstyle(invoke("plan").output).startswith("  Say what a model takes")
