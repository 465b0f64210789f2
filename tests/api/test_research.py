"""Values read and replaced on the way from tokens to logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from conformance.running import cpu_is_built
from herd.errors import UsageError
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

CFG = tiny_llama()
IDS = [int(token) for token in np.random.default_rng(3).integers(0, CFG.vocab_size, 150)]


@pytest.fixture(scope="module", params=["reference", "cpu", "torch"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "torch":
        pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    if request.param == "cpu" and not cpu_is_built():
        pytest.skip("the native core is not built here")
    folder = tmp_path_factory.mktemp("research")
    write_huggingface(folder, CFG, random_leaves(CFG))
    with herd.load(folder, backend=request.param) as loaded:
        yield loaded


def test_a_trace_gives_values_by_name_and_the_same_logits(model: herd.Model) -> None:
    trace = model.trace(IDS, ["layers.*.out", "layers.1.attention.q", "final"])
    assert set(trace.values) == {"layers.0.out", "layers.1.out", "layers.1.attention.q", "final"}
    assert trace["layers.0.out"].shape == (150, CFG.width) and trace["layers.1.attention.q"].shape == (150, 8, 32)
    assert np.allclose(trace.logits_TV, model.logits(IDS), atol=1e-4)


def test_a_softmax_is_square_and_looks_back_only(model: herd.Model) -> None:
    weights = model.trace(IDS, ["layers.0.attention.weights"])["layers.0.attention.weights"]
    assert weights.shape == (8, 150, 150)
    assert np.allclose(weights.sum(axis=-1), 1, atol=1e-5) and not np.triu(weights[0], 1).any()


def test_replacing_values_by_themselves_changes_nothing(model: herd.Model) -> None:
    names = ["layers.0.attention.weights", "layers.0.attention.heads", "layers.1.middle", "layers.1.ffn.hidden"]
    trace = model.trace(IDS, names)
    for name in names:
        assert np.allclose(model.patch(IDS, {name: trace[name]}).logits_TV, trace.logits_TV, atol=1e-4), name


def test_an_ablated_head_changes_the_logits_and_only_what_comes_later(model: herd.Model) -> None:
    def silenced(x_TNH: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x_TNH = x_TNH.copy()
        x_TNH[positions >= 100, 3] = 0
        return x_TNH

    plain = model.logits(IDS)
    changed = model.patch(IDS, {"layers.0.attention.heads": silenced}).logits_TV
    assert np.allclose(changed[:100], plain[:100], atol=1e-4)
    assert (abs(changed[100:] - plain[100:]).max(axis=1) > 1e-3).all()


def test_a_number_replaces_all_of_a_value(model: herd.Model) -> None:
    without = model.patch(IDS, {"layers.*.attention.out": 0.0, "layers.*.ffn.out": 0.0}, ["embed", "layers.1.out"])
    assert np.array_equal(without["embed"], without["layers.1.out"])


def test_the_lens_ends_with_the_model_itself(model: herd.Model) -> None:
    logits = model.lens(IDS)
    assert list(logits) == [0, 1]
    assert np.allclose(logits[1], model.logits(IDS), atol=1e-4) and abs(logits[0] - logits[1]).max() > 0.1


def test_patches_leave_nothing_in_the_cache(model: herd.Model) -> None:
    before = model.generate(IDS, max_tokens=4, temperature=0.0).token_ids
    model.patch(IDS, {"embed": 0.0})
    assert model.generate(IDS, max_tokens=4, temperature=0.0).token_ids == before


@pytest.mark.parametrize(
    ("changes", "taps", "message"),
    [
        ({}, ["layers.9.out"], r"No value of this model is called 'layers.9.out'; did you mean 'layers.\d.out'"),
        ({"embed": np.zeros((3, 256), np.float32)}, [], r"has shape \[3, 256\]; the value has \[150, 256\]"),
        ({"embed": lambda x, at: x[:1]}, [], r"The patch of embed gave shape \[1, 256\]; the value has \[64, 256\]"),
        ({"embed": 0.0, "emb*": 1.0}, [], "Two changes match embed, the second is 'emb\\*'"),
        ({"embed": float("nan")}, [], "The replacement of embed holds a value that is not a finite number, from position 0 on"),
        ({"layers.0.attention.weights": np.zeros((8, 2, 2))}, [], r"the value has \[8, 150, 150\]"),
        ({"embed": "loud"}, [], "The replacement of embed is 'loud'; expected a number, an array or a function"),
        (["embed"], [], "changes is list; expected names of values"),
        ({}, [5], "A name of a value is 5; expected a text"),
    ],
)
def test_wrong_names_and_shapes_are_refused(model: herd.Model, changes: Any, taps: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.patch(IDS, changes, taps)
    assert model.logits(IDS[:3]).shape == (3, CFG.vocab_size)


def test_embeddings_equal_the_pooled_hidden_states_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    from transformers import LlamaModel

    write_huggingface(tmp_path, CFG, random_leaves(CFG))
    write_bytes_tokenizer(tmp_path)
    texts = ["a cat", "A longer text, about nothing at all; it goes on and on until it is longer than a step of sixty-four tokens."]
    theirs = LlamaModel.from_pretrained(tmp_path).eval()
    with herd.load(tmp_path, backend="reference") as loaded:
        found = loaded.embed(texts)
        for text, ours in zip(texts, found, strict=True):
            with torch.inference_mode():
                states = theirs(torch.tensor([loaded.tokenizer.encode(text)])).last_hidden_state[0].mean(dim=0)
            assert np.allclose(ours, (states / states.norm()).numpy(), atol=1e-5)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        with pytest.raises(UsageError, match="There are no texts to embed"):
            loaded.embed([])


def write_bytes_tokenizer(folder: Path) -> None:
    """A vocabulary of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_what_is_no_list_is_refused_by_name_and_a_closed_model_has_no_names_to_find(tmp_path: Path) -> None:
    write_huggingface(tmp_path, CFG, random_leaves(CFG))
    with herd.load(tmp_path, backend="reference") as loaded:
        with pytest.raises(UsageError, match="taps is NoneType; expected a list of names"):
            loaded.trace(IDS, None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="texts is NoneType; expected a text or a list of texts"):
            loaded.embed(None)  # type: ignore[arg-type]
        loaded._engine._value_names = None
    with pytest.raises(UsageError, match="closed"):
        loaded.trace(IDS)


def test_a_patch_that_asks_its_own_model_is_told_so(model: herd.Model) -> None:
    def asking(x_TD: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        model.logits([1])
        return x_TD

    with pytest.raises(UsageError, match="in the middle of a step"):
        model.patch(IDS, {"embed": asking})
    assert model.logits(IDS[:3]).shape == (3, CFG.vocab_size)


def test_pictures_for_a_model_that_reads_text_only_are_refused(model: herd.Model) -> None:
    with pytest.raises(UsageError, match="reads text only; 1 picture was given"):
        model.logits(IDS, images=[b""])
    with pytest.raises(UsageError, match="images is bytes; expected a list of pictures"):
        model.logits(IDS, images=b"one")  # type: ignore[arg-type]


def test_one_name_need_not_stand_in_a_list(model: herd.Model) -> None:
    assert set(model.trace(IDS[:3], "layers.*.out").values) == {"layers.0.out", "layers.1.out"}


def test_layers_of_the_lens_are_whole_numbers_in_the_model(model: herd.Model) -> None:
    for wrong in (-1, 2, 0.5, "0"):
        with pytest.raises(UsageError, match="There is no layer"):
            model.lens(IDS[:3], [wrong])  # type: ignore[list-item]
