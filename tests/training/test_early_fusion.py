"""A tiny Llama 4 that learns to see: pictures take part in what it says, and in what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.data.drawings import drawing
from herd.errors import UsageError
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.training.beginning.initialising import initial_leaf
from herd.training.recipes.pretrain import Pretraining
from herd.training.running.optim import kinds_of, make_optimiser
from herd.training.schedules import Schedule
from herd.training.settings.initial import InitialSettings
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.pretrain import BalancingSettings, PretrainSettings, SourceSettings
from herd.training.shape import ModelSettings, VisionSettings, config_of
from herd.training.sources.drawn import Drawings
from herd.training.sources.mixing import Mixture
from herd.training.student.batches import Document, batch_of
from herd.training.student.early_fusion import EarlyFusion
from herd.training.student.model import Student

NAMES = "begin_of_text end_of_text header_start header_end eot eom step image_start image_end image patch tile_x_separator tile_y_separator"
CONTROL = [f"<|{name}|>" for name in (NAMES + " python_start python_end finetune_right_pad").split()]
SEEN = 6
VISION = VisionSettings(width=32, layers=1, heads=2, tile=32, patch=8, merge=2)
MODEL = ModelSettings(architecture="llama4", width=32, layers=2, heads=2, head_width=16, experts=2, chunk=16, global_every=2, vision=VISION)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    words = [drawing(0, index, 8).caption for index in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet))
    path: Path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made.save(str(path))
    return load_tokenizer(kind="tokenizer.json", path=path, config={"bos_token": CONTROL[0], "eos_token": CONTROL[1]})


def config(tokenizer: Tokenizer) -> Any:
    return config_of(MODEL, vocab_size=tokenizer.vocab_size, context=256, picture_token=tokenizer.special_ids["<|patch|>"])


class Few(Drawings):
    """The same few drawings in every sequence."""

    def learned(self, position: int, length: int) -> list[Document]:
        return [self.document(drawing(5, index, 32)) for index in range(SEEN)]

    def held_out(self, length: int, tokens: int) -> Iterator[list[Document]]:
        yield self.learned(0, length)


def test_pictures_that_are_encoded_at_once_are_as_if_one_by_one(tokenizer: Tokenizer) -> None:
    cfg = config(tokenizer)
    batch = batch_of(Few("few", tokenizer, cfg, 0).learned(0, 256))
    at_once, alone = EarlyFusion(cfg, initial_leaf(cfg, 1)), Student(cfg, initial_leaf(cfg, 1))
    ours, theirs = at_once.hidden(batch), alone.hidden(batch)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for made in (ours, theirs):
        made.square().sum().backward()  # type: ignore[no-untyped-call]
    first, second = at_once.parameters["vision.patches"].grad, alone.parameters["vision.patches"].grad
    assert first is not None and second is not None and first.any() and (first - second).norm() <= 1e-4 * second.norm()


def test_only_the_answer_and_its_end_carry_loss(tokenizer: Tokenizer) -> None:
    source = Drawings("drawings", tokenizer, config(tokenizer), 0)
    drawn = drawing(0, 3, 32)
    document = source.document(drawn)
    learned = [token for token, weight in zip(document.tokens, document.weights, strict=True) if weight]
    assert tokenizer.decode(learned, skip_specials=False).strip() == f"{drawn.caption}<|eot|>"
    assert len(document.pictures[0].positions) == 4


def test_with_one_question_for_all_a_model_learns_to_tell_drawings_apart(tokenizer: Tokenizer) -> None:
    cfg = config(tokenizer)
    steps = 80
    settings = PretrainSettings(
        data=(SourceSettings(name="few", kind="drawings"),),
        sequence=256,
        batch_tokens=256,
        optimiser=OptimiserSettings(name="muon", weight_decay=0.0),
        balancing=BalancingSettings(bias=0.02),
        loop=LoopSettings(schedule=Schedule(name="constant", lr=0.02, steps=steps)),
    )
    source = Few("few", tokenizer, cfg, 0)
    student = EarlyFusion(cfg, initial_leaf(cfg, 1, InitialSettings(std=0.05)))
    made = Pretraining(student, Mixture([source], settings), settings)
    optimiser = make_optimiser(settings.optimiser, kinds_of(cfg, made.parameters))
    for step in range(steps):
        for parameter in made.parameters.values():
            parameter.grad = None
        made.step(step)
        optimiser.step(made.parameters, 0.02 * (1 - step / steps))  # a constant rate never quite settles
    batch = batch_of(source.learned(0, 256))
    assert len({drawing(5, index, 8).caption for index in range(SEEN)}) == SEEN
    with torch.no_grad():
        assert torch.equal(student.logits(batch).argmax(-1), batch.targets_R)


def test_a_model_that_sees_nothing_is_refused_pictures(tokenizer: Tokenizer) -> None:
    blind = config_of(ModelSettings(width=32, layers=2), vocab_size=tokenizer.vocab_size, context=64)
    with pytest.raises(UsageError, match="the model sees none"):
        Drawings("drawings", tokenizer, blind, 0)
    with pytest.raises(UsageError, match="A drawing takes"):
        Drawings("drawings", tokenizer, config(tokenizer), 0).learned(0, 8)
