"""Conversations with calls of tools and with pictures, from a JSONL file to a model that calls and sees: `herd tune inspect` and `sft`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from click.testing import CliRunner
from PIL import Image

import herd
from cli import chat_model
from herd.checkpoints.checkpoint import TokenizerSource
from herd.cli.main import main
from herd.convert.trained import write_trained
from herd.models.architecture import Config
from herd.providers.base import Called
from herd.text.splits import LLAMA3, O200K
from text import vocabularies
from tiny import random_leaves, tiny_llama, tiny_llama3_vision, tiny_llama4, tiny_llama4_vision

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PLACES = {"Oslo": "rain", "Rome": "sun"}


def call(city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def asked(city: str) -> dict[str, Any]:
    return {"role": "user", "content": city}


def told(city: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c1", "content": PLACES[city]}


def with_tools(city: str) -> dict[str, Any]:
    return {
        "messages": [asked(city), call(city), told(city), {"role": "assistant", "content": f"It is {PLACES[city]}."}],
        "tools": [WEATHER],
    }


def words(split: str, last: str = "") -> tuple[dict[str, Any], int]:
    """A tokenizer.json, and how many tokens it has; `last`: the control token that has the last number."""
    pieces = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    cutters = {"type": "Sequence", "pretokenizers": [pieces, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    made = vocabularies.huggingface(cutters)
    added = sorted(made["added_tokens"], key=lambda each: (each["content"] == last, each["id"]))
    first = min(each["id"] for each in added)
    made["added_tokens"] = [{**each, "id": first + at} for at, each in enumerate(added)]
    return made, first + len(added)


def id_of(made: Mapping[str, Any], name: str) -> int:
    return next(int(each["id"]) for each in made["added_tokens"] if each["content"] == name)


def write(folder: Path, cfg: Config, made: Mapping[str, Any], end: str) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(made), "utf-8")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": end}
    source = TokenizerSource("tokenizer.json", folder / "tokenizer.json", config=config)
    write_trained(folder / "model", cfg, random_leaves(cfg), tokenizer=source, stop_ids=[id_of(made, end)])
    return folder / "model"


def llama(folder: Path) -> Path:
    made, count = words(LLAMA3)
    return write(
        folder,
        tiny_llama(vocab_size=count, num_layers=2, context_length=1024),
        made,
        "<|eot_id|>",
    )


def llama4(folder: Path) -> Path:
    made, count = words(O200K)
    vision = tiny_llama4_vision(num_layers=1, picture_token=id_of(made, "<|patch|>"))
    return write(folder, replace(tiny_llama4(vision=vision), vocab_size=count, context_length=512), made, "<|eot|>")


def llama3_vision(folder: Path) -> Path:
    """As the release: the token of a picture is one that the model reads and never writes."""
    made, count = words(LLAMA3, last="<|image|>")
    cfg = tiny_llama3_vision(vocab_size=count - 1, picture_aliases=(), context_length=512)
    assert cfg.picture_id == id_of(made, "<|image|>")
    return write(folder, cfg, made, "<|eot_id|>")


def tune(*options: object) -> dict[str, Any]:
    found = CliRunner().invoke(main, ["tune", *map(str, options), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def learned_texts(inspected: Mapping[str, Any]) -> list[set[str]]:
    """What carries loss in each of the examples that are shown."""
    return [{run["text"] for run in example["runs"] if run["weight"]} for (example,) in inspected["shown"]]


def losses(run: Path) -> list[float]:
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in log if "loss" in line]


SMALL = ("--batch", 2, "--held-out", 0, "--set", "student.dtype=float32", "--set", "samples=0")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A model, and conversations with calls."""
    folder = tmp_path_factory.mktemp("tools")
    data = lines(folder / "calls.jsonl", [with_tools(city) for city in PLACES] * 4)
    return ("--model", llama(folder / "base"), "--data", data, "--chat-format", "llama3.1")


def test_calls_of_tools_carry_loss_and_their_results_do_not(tools: tuple[object, ...]) -> None:
    seen = learned_texts(tune("inspect", *tools, "--examples", 8))
    written = [{json.dumps({"name": "weather", "parameters": {"city": city}}), f"It is {PLACES[city]}."} for city in PLACES]
    assert all({text for text in each if not text.startswith("<|")} in written for each in seen) and len(seen) == 8
    assert all({text for text in each if text.startswith("<|")} == {"<|eot_id|>"} for each in seen)


@pytest.mark.slow
def test_calls_of_tools_are_learned(tools: tuple[object, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune("sft", *tools, "--out", run, "--full", "--lr", 0.002, "--steps", 60, *SMALL)
    assert losses(run)[-1] < 0.1 < losses(run)[0]
    with herd.load(run, chat_format="llama3.1", context=512) as loaded:
        for city in PLACES:
            events = loaded.chat([asked(city)], tools=[WEATHER], temperature=0.0, max_tokens=60)
            (called,) = [event.call for event in events if isinstance(event, Called)]
            assert (called.name, called.arguments) == ("weather", {"city": city})
            answer = loaded.collect([], loaded.chat([asked(city), call(city), told(city)], tools=[WEATHER], temperature=0.0, max_tokens=60))
            assert answer.text == f"It is {PLACES[city]}."


def painted(colour: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(made, "PNG")
    return made.getvalue()


COLOURS = ("red", "blue")


@pytest.fixture(scope="module", params=[(llama4, "llama4"), (llama3_vision, "llama3.2-vision")], ids=["llama 4", "llama 3.2 vision"])
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A model, and conversations about pictures, in the data and beside it."""
    make, chat_format = request.param
    folder = tmp_path_factory.mktemp("pictures")
    records: list[dict[str, Any]] = []
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(painted(colour))
        url = "data:image/png;base64," + base64.b64encode(painted(colour)).decode()
        for shown in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image", "path": f"{colour}.png"}):
            content = [shown, {"type": "text", "text": "Which?"}]
            records.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": colour}]})
    data = lines(folder / "pictures.jsonl", records)
    return ("--model", make(folder / "base"), "--data", data, "--chat-format", chat_format)


def test_pictures_carry_no_loss(pictures: tuple[object, ...]) -> None:
    seen = tune("inspect", *pictures, "--examples", 4)
    assert {text for each in learned_texts(seen) for text in each} <= {*COLOURS, "<|eot_id|>", "<|eot|>"}
    assert all(any(run["kind"] == "picture" for run in example["runs"]) for (example,) in seen["shown"])
    with herd.load(pictures[1], context=64, chat_format=pictures[-1]) as loaded:  # type: ignore[arg-type]
        prompt = loaded.chat_token_ids(loaded.chat_request([{"role": "user", "content": [Image.new("RGB", (9, 9)), "?"]}]))
        assert len(loaded.generate(prompt[:3], temperature=0.0, max_tokens=2).token_ids) > 0 and len(prompt) > 5


@pytest.mark.slow
def test_pictures_are_learned_from_data_urls_and_from_files(pictures: tuple[object, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune("sft", *pictures, "--out", run, "--full", "--lr", 0.001, "--steps", 40, *SMALL)
    assert losses(run)[-1] < 0.1 < losses(run)[0]
    with herd.load(run, chat_format=pictures[-1], context=256) as loaded:  # type: ignore[arg-type]
        for colour in COLOURS:
            content = [Image.new("RGB", (40, 30), colour), "Which?"]
            events = loaded.chat([{"role": "user", "content": content}], temperature=0.0, max_tokens=8)
            assert loaded.collect([], events).text == colour


@pytest.mark.parametrize("method", ["--lora", "--full"])
def test_a_run_remembers_the_chat_format_that_it_was_told_to_teach(method: str, tmp_path: Path) -> None:
    bare = chat_model.write(tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "chat_template"}))
    record = {"messages": [asked("a"), {"role": "assistant", "content": "b"}]}
    few = ("--data", lines(tmp_path / "a.jsonl", [record] * 4), method, "--steps", 1, *SMALL)
    tune("sft", "--model", bare, "--out", tmp_path / "run", "--chat-format", "chatml", *few)
    with herd.load(tmp_path / "run", context=64) as model:
        assert model.chat_format is not None and model.chat_format.name == "chatml"
    again = tune("sft", "--model", tmp_path / "run", "--out", tmp_path / "again", *few)
    assert again["end"] == "finished", "what goes on from it reads conversations as it does"
