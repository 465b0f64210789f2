"""From text to a model that herd, transformers and llama.cpp's format have alike; resuming; growing experts."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import herd
from herd.checkpoints.open import open_checkpoint
from herd.cli.main import main
from herd.errors import UsageError
from herd.training.shape import ModelSettings, VisionSettings, config_of
from herd.training.sources.corpus import read_corpus, write_corpus
from training.pretraining_together import make_place

SIZES = ["--width", "32", "--layers", "2", "--sequence", "32", "--batch-tokens", "128", "--steps", "4", "--lr", "0.01"]
LLAMA4 = ["--architecture", "llama4", "--experts", "2", "--set", "model.chunk=16", "--set", "model.global_every=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and a tokenizer that was learned from it."""
    folder = tmp_path_factory.mktemp("pretraining")
    make_place(folder)
    return folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["train", "pretrain", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def given(place: Path) -> list[str]:
    return ["--data", str(place / "fox.txt"), "--tokenizer", str(place / "words"), *SIZES]


@pytest.mark.parametrize("more", [["--like", "llama-3.2-1b"], LLAMA4], ids=["llama", "llama4"])
def test_what_was_pretrained_is_the_same_model_for_herd_transformers_and_gguf(place: Path, tmp_path: Path, more: list[str]) -> None:
    from transformers import AutoModelForCausalLM

    from herd.convert import convert
    from herd.training.student.batches import Document, batch_of
    from herd.training.student.model import Student

    out = tmp_path / "run"
    said = run(*given(place), *more, "--out", str(out))
    assert "step 4 of 4" in said and "\nloss" in said and "The model is in" in said
    opened = open_checkpoint(out / "model")
    ids = list(range(5, 25))
    batch = batch_of([Document((*ids, 1), (0.0, *[1.0] * len(ids)))])
    with torch.no_grad():
        ours = Student(opened.config, opened.leaf).logits(batch).numpy()
        theirs = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32, attn_implementation="eager")(torch.tensor([ids]))
    assert np.abs(ours - theirs.logits[0].numpy()).max() < 2e-5 * np.abs(ours).max()
    convert(out / "model", tmp_path / "model.gguf", to="gguf")
    as_gguf = open_checkpoint(tmp_path / "model.gguf")
    assert all(np.array_equal(opened.leaf(spec.name).data, as_gguf.leaf(spec.name).data) for spec in opened.specs)
    assert opened.tokenizer is not None and opened.stop_ids == (1,)


def test_a_run_that_was_stopped_ends_like_one_that_was_not(place: Path, tmp_path: Path) -> None:
    from herd.training.beginning.pretrain_run import pretrain
    from herd.training.running.loop import End, Told
    from herd.training.settings.pretrain import PretrainSettings
    from herd.training.settings.reading import read_settings

    named: dict[str, Any] = {
        "data": [{"path": [str(place / "fox.txt")], "held_out": 0.2}],
        "tokenizer": str(place / "words"),
        "model": {"architecture": "llama4", "width": 32, "layers": 2, "experts": 2},
        "sequence": 32,
        "batch_tokens": 64,
        "optimiser": {"name": "muon"},
        "loop": {"schedule": {"steps": 6, "lr": 0.01}, "save_every": 2, "evaluate_every": 3},
    }
    settings = read_settings(PretrainSettings, None, (), named)
    written: dict[Path, dict[str, Any]] = {}

    def write(folder: Path, cfg: Any, leaves: Any, words: Any, beside: Any) -> None:
        written[folder] = {name: np.array(leaf.data) for name, leaf in leaves.items()}

    class Killed(Exception):
        pass

    def killed(told: Told) -> None:
        if told.step == 5:
            raise Killed

    assert pretrain(settings, tmp_path / "whole", write) is End.FINISHED
    with pytest.raises(Killed):
        pretrain(settings, tmp_path / "halves", write, told=killed)
    assert pretrain(settings, tmp_path / "halves", write, resume=True) is End.FINISHED
    whole, halves = written.values()
    assert all(np.array_equal(whole[name], halves[name]) for name in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "halves" / "metrics.jsonl").read_bytes()


def test_a_trained_model_gets_experts_by_a_command_and_goes_on_learning(place: Path, tmp_path: Path) -> None:
    run(*given(place), "--out", str(tmp_path / "dense"))
    upcycle = ["train", "upcycle", str(tmp_path / "dense/model"), str(tmp_path / "experts"), "--experts", "2"]
    done = CliRunner().invoke(main, upcycle, standalone_mode=False)
    assert done.exception is None, done.output
    more = [
        "--begin",
        str(tmp_path / "experts"),
        "--data",
        str(place / "fox.txt"),
        "--steps",
        "2",
        "--sequence",
        "32",
        "--batch-tokens",
        "64",
    ]
    assert "step 2 of 2" in run(*more, "--out", str(tmp_path / "grown"))


def test_a_runs_folder_is_begun_with_as_any_model_is(place: Path, tmp_path: Path) -> None:
    from herd.api.tuning_sft import tune_sft
    from herd.checkpoints.learned import open_learned
    from herd.convert import convert
    from herd.training.settings.reading import read_settings
    from herd.training.settings.sft import SftSettings

    run(*given(place), "--out", str(tmp_path / "dense"))
    (tmp_path / "text.jsonl").write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 8)
    quick = ["student.method=lora", "lr=0.05", "epochs=0", "loop.schedule.steps=3", "held_out=0"]
    tune_sft(
        read_settings(SftSettings, None, quick, {"model": str(tmp_path / "dense"), "data": [str(tmp_path / "text.jsonl")]}), tmp_path / "x"
    )
    convert(str(tmp_path / "x"), tmp_path / "merged", to="hf")
    with herd.load(tmp_path / "x", backend="reference") as over, herd.load(tmp_path / "merged", backend="reference") as one:
        assert abs(over.logits([5, 6, 7]) - one.logits([5, 6, 7])).max() < 1e-4
    words = {"dense": tmp_path / "dense", "tuned": tmp_path / "x"}
    for name, folder in words.items():
        for options in (["--begin"], ["--tokenizer", str(folder), "--like"]):
            out = tmp_path / f"{name}{len(options)}"
            more = ["--steps", "1", "--sequence", "32", "--batch-tokens", "64", "--lr", "0"]
            run(*options, str(folder), "--data", str(place / "fox.txt"), *more, "--out", str(out))
            same, wanted = (out / "model", tmp_path / "merged" if name == "tuned" else tmp_path / "dense/model")
            with closing(open_checkpoint(same)) as ours, closing(open_checkpoint(wanted)) as theirs:
                assert ours.config == theirs.config
                equal = [np.array_equal(ours.leaf(spec.name).data, theirs.leaf(spec.name).data) for spec in ours.specs]
                assert all(equal) == (options == ["--begin"])
        upcycle = ["train", "upcycle", str(folder), str(tmp_path / f"{name}-experts"), "--experts", "2"]
        done = CliRunner().invoke(main, upcycle, standalone_mode=False)
        assert done.exception is None, done.output
    files = json.loads((tmp_path / "tuned1" / "facts.json").read_text())["data"]
    assert str(tmp_path / "x" / "adapter" / "adapter_model.safetensors") in files
    with closing(open_checkpoint(tmp_path / "tuned-experts")) as grown, closing(open_learned(tmp_path / "x", Path)) as tuned:
        assert np.array_equal(grown.leaf("layers.0.attention.q").data, tuned.leaf("layers.0.attention.q").data)


def test_what_begins_with_a_file_carries_its_licence_and_what_begins_with_nothing_misses_none(place: Path, tmp_path: Path) -> None:
    from herd.convert import convert

    assert "licence" not in run(*given(place), "--out", str(tmp_path / "dense"))
    (tmp_path / "dense/model/LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    (tmp_path / "files").mkdir()
    file = tmp_path / "files" / "words.gguf"
    convert(tmp_path / "dense/model", file, to="gguf")
    begun = run("--begin", str(file), "--data", str(place / "fox.txt"), *SIZES[4:], "--out", str(tmp_path / "more"))
    assert "no licence file" not in begun
    done = CliRunner().invoke(main, ["train", "upcycle", str(file), str(tmp_path / "experts"), "--experts", "2"], standalone_mode=False)
    assert done.exception is None and "no licence file" not in done.output
    for folder in (tmp_path / "more/model", tmp_path / "experts"):
        assert (folder / "LICENSE.txt").read_text().startswith("LLAMA 3.2")
        assert "Llama 3.2 is licensed" in (folder / "NOTICE").read_text()


def test_a_run_that_goes_on_after_its_end_leaves_the_newer_model(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(*given(place), "--out", str(out))
    earlier = (out / "model" / "model.safetensors").read_bytes()
    run(*given(place), "--steps", "6", "--resume", "--force", "--out", str(out))
    newer = (out / "model" / "model.safetensors").read_bytes()
    assert newer != earlier and not list(out.glob(".*.part"))
    assert json.loads((out / "end.json").read_text()) == {"state": "finished", "step": 6, "why": ""}


def test_without_data_or_tokenizer_a_run_is_refused_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data to learn from"):
        run("--width", "32", "--layers", "2", "--out", str(tmp_path / "run"))
    with pytest.raises(UsageError, match="No tokenizer was given"):
        run("--data", str(place / "fox.txt"), "--width", "32", "--layers", "2", "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_held_out_sections_are_apart_and_the_same_for_one_seed(tmp_path: Path) -> None:
    documents = [list(range(number * 10_000, number * 10_000 + 5000)) for number in range(20)]
    learned, held = write_corpus(tmp_path / "a", "text", documents, 0.2, 3)
    tokens = {*learned.tokens.tolist()}, {*held.tokens.tolist()}
    assert not tokens[0] & tokens[1] and len(tokens[0] | tokens[1]) == 100_000
    assert held.num_tokens / 100_000 == pytest.approx(0.2, abs=0.12)
    again = write_corpus(tmp_path / "b", "text", documents, 0.2, 3)[1]
    assert np.array_equal(again.tokens, held.tokens) and np.array_equal(read_corpus(tmp_path / "b", "text")[1].starts, held.starts)
    for piece in (piece for index in range(learned.num_sequences(512)) for piece in learned.pieces(index, 512)):
        assert list(piece) == list(range(piece[0], piece[0] + len(piece)))


def test_a_model_like_another_has_its_proportions() -> None:
    cfg: Any = config_of(ModelSettings(like="llama-3.2-1b", width=256, layers=3), vocab_size=500, context=128)
    assert (cfg.num_heads, cfg.num_kv_heads, cfg.head_width, cfg.ffn_width) == (4, 1, 64, 1024)
    assert cfg.tied_embeddings and cfg.rope.theta == 500000.0 and cfg.rope.scaling is None and cfg.context_length == 128
    scout: Any = config_of(ModelSettings(like="llama-4-scout-17b-16e", width=320, layers=4, experts=4), vocab_size=500, context=128)
    assert scout.expert_layers == (0, 1, 2, 3) and scout.rotary_layers == (0, 1, 2) and scout.num_experts == 4 and scout.qk_norm


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 64}, "give model.width and model.layers"),
        ({"architecture": "lama"}, "did you mean 'llama'"),
        ({"width": 64, "layers": 2, "experts": 4}, "belongs to a Llama 4"),
        ({"width": 64, "layers": 2, "vocab_size": 10}, "the tokenizer has 500"),
        ({"width": 64, "layers": 2, "context": 10}, "sequences of 128"),
        ({"width": 64, "layers": 2, "heads": 4, "kv_heads": 3}, "cannot share 3"),
        ({"width": 64, "layers": 2, "architecture": "llama4", "chosen": 9}, "9 of 4 experts"),
        ({"width": 64, "layers": 2, "architecture": "llama4", "vision": VisionSettings(width=64)}, "the tokenizer has no"),
        ({"like": "llama-guard-4-12bb"}, "llama-guard-4-12b"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_is_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config_of(ModelSettings(**settings), vocab_size=500, context=128)
