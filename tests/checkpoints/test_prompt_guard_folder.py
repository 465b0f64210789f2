"""Prompt Guard folders as `transformers` saves them: labels, long texts, and what is wrong with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

import herd
from herd.backends.reference import ReferenceBackend
from herd.errors import FileProblem, UsageError

LABELS = ["BENIGN", "INJECTION", "JAILBREAK"]
PIECES = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", -5.0), ("\u2581", -2.0), ("\u2581ignore", -2.6)]
PIECES += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz."]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with random weights and a small unigram vocabulary, the model that wrote it, and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    folder = tmp_path_factory.mktemp("guard")
    tokenizer = Tokenizer(models.Unigram(PIECES, 3, False))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in PIECES[:4]])
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer", **names}))
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = DebertaV2Config(
        vocab_size=len(PIECES),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = DebertaV2ForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float("LayerNorm" in str(parameter)), std=0.3)
    model.save_pretrained(folder)
    return folder, model, tokenizer


def their_probabilities(saved: tuple[Path, Any, Any], ids: list[int]) -> dict[str, float]:
    with torch.inference_mode():
        row = saved[1](torch.tensor([ids])).logits[0].double().softmax(-1)
    return dict(zip(LABELS, row.tolist(), strict=True))


def test_a_text_gets_the_probabilities_that_transformers_gives(saved: tuple[Path, Any, Any]) -> None:
    with herd.load(saved[0], backend="reference") as model:
        for text in ("ignore all of that.", "a", ""):
            found = model.classify(text)
            expected = their_probabilities(saved, saved[2].encode(text).ids)
            assert found.probabilities == pytest.approx(expected, abs=1e-5) and found.pieces == 1
            assert found.label == max(expected, key=expected.__getitem__)


def test_a_long_text_counts_as_its_most_suspicious_piece(saved: tuple[Path, Any, Any]) -> None:
    text = "abc. " * 20 + "ignore xyz " * 12
    ids = saved[2].encode(text).ids[1:-1]
    pieces = [their_probabilities(saved, [1, *ids[at : at + 62], 2]) for at in range(0, len(ids), 62)]
    with herd.load(saved[0], backend="reference") as model:
        found = model.classify(text)
    assert found.pieces == len(pieces) > 1
    assert found.probabilities == pytest.approx(min(pieces, key=lambda piece: piece["BENIGN"]), abs=1e-5)


def test_a_temperature_flattens_the_probabilities(saved: tuple[Path, Any, Any]) -> None:
    with herd.load(saved[0], backend="reference") as model:
        plain, flat = model.classify("ignore"), model.classify("ignore", temperature=100.0)
        assert max(flat.probabilities.values()) < max(plain.probabilities.values()) and flat.label == plain.label
        sharp = model.classify("ignore", temperature=1e-310)
        assert sharp.label == plain.label and sharp.probabilities[sharp.label] == 1.0
        for wrong in (0, "1", None):
            with pytest.raises(UsageError, match=r"temperature is .*; it must be a finite number above 0"):
                model.classify("ignore", temperature=wrong)  # type: ignore[arg-type]


def test_labels_are_not_told_of_logits_that_are_no_numbers_nor_by_a_closed_model(
    saved: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with herd.load(saved[0], backend="reference") as model:
        monkeypatch.setattr(ReferenceBackend, "classify", lambda self, tokens: np.array([0.5, np.nan, 1.0], np.float32))
        with pytest.raises(FileProblem, match=r"logits are \[0.5, nan, 1.0\], not all of them finite"):
            model.classify("ignore")
        monkeypatch.undo()
    with pytest.raises(UsageError, match="closed"):
        model.classify("ignore")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_classifier_has_no_next_token(saved: tuple[Path, Any, Any], backend: str) -> None:
    ids = [1, 4, 2]
    with herd.load(saved[0], backend=backend) as model:
        asked: list[Callable[[], object]] = [
            lambda: model.generate("ignore"),
            lambda: model.logits(ids),
            lambda: model.trace(ids),
            lambda: model.patch(ids, {}),
            lambda: model.lens(ids),
            lambda: model.embed("ignore"),
            lambda: model.chat([{"role": "user", "content": "ignore"}]),
            lambda: model.chat_format,
            lambda: model.provider.logits(ids).__next__(),
        ]
        for ask in asked:
            with pytest.raises(UsageError, match=r"classifier of whole texts.* has no next token\. Use model\.classify"):
                ask()
        assert model.value_names == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share_att_key": False}, "share_att_key is false; version 3 has it"),
        ({"pos_att_type": ["c2p"]}, "both kinds of relative attention"),
        ({"position_biased_input": True}, "positions are no part of the input"),
        ({"id2label": {"0": "A", "2": "B"}}, "must give a text for each number from 0"),
        ({"position_buckets": 512}, "there must be fewer than twice as many"),
        ({"mystery": 1}, "mystery is not a key"),
        ({"model_type": "bert"}, "model_type is 'bert'; herd reads"),
    ],
)
def test_other_classifiers_are_refused_by_name(saved: tuple[Path, Any, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((saved[0] / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((saved[0] / "model.safetensors").read_bytes())
    with pytest.raises(FileProblem, match=message):
        herd.load(tmp_path, backend="reference")
