"""A chat about pictures, from a folder to the answer: Llama 4, with its own template and without."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

from PIL import Image

import herd
from conformance.llama4 import transformers_model
from herd.errors import UsageError
from herd.text.formats.llama4 import Llama4
from text import vocabularies
from text.test_chat_tools import LLAMA4
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

BYTES = vocabularies.tokenizer("llama-bpe")
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny-llama4")
    vision = tiny_llama4_vision(picture_token=BYTES.special_ids["<|patch|>"])
    cfg = replace(tiny_llama4(vision=vision), vocab_size=BYTES.vocab_size, context_length=512)
    transformers_model(cfg, random_leaves(cfg)).save_pretrained(folder)
    split = {"type": "Split", "pattern": {"Regex": _expression()}, "behavior": "Isolated", "invert": False}
    cutters = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    (folder / "tokenizer.json").write_text(json.dumps(vocabularies.huggingface(cutters)), "utf-8")
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "chat_template": LLAMA4}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    with herd.load(folder, backend="reference") as loaded:
        yield loaded


def _expression() -> str:
    from herd.text.splits import O200K

    return O200K


def _data_url(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _tokens(model: herd.Model, content: list[Any]) -> tuple[list[int], list[int]]:
    """(prompt, answer)."""
    messages = [{"role": "user", "content": content}]
    request = model.chat_request(messages, max_tokens=2, temperature=0.0)
    answer = [token.token for event in model.provider.chat(request) if event.type == "text" for token in event.tokens]
    return model.chat_token_ids(request), answer


def test_a_chat_about_a_picture_answers_from_its_logits(model: herd.Model) -> None:
    assert isinstance(model.chat_format, Llama4)
    prompt, answer = _tokens(model, ["What is ", PICTURE, "?"])
    assert prompt.count(BYTES.special_ids["<|patch|>"]) == 4 * 5, "four tiles and the small whole picture, four ids each"
    assert prompt.count(BYTES.special_ids["<|tile_y_separator|>"]) == 2
    messages = [{"role": "user", "content": ["What is ", PICTURE, "?"]}]
    assert model.chat_format.render(messages) == prompt, "what the model's own format renders is what its logits take"
    assert model.chat_format.render(messages, tiles=lambda image: (1, 1)) != prompt
    assert answer[0] == int(model.logits(prompt, images=[PICTURE])[-1].argmax())
    other = Image.fromarray(255 - np.asarray(PICTURE))
    assert abs(model.logits(prompt, images=[PICTURE])[-1] - model.logits(prompt, images=[other])[-1]).max() > 1e-3


def test_a_data_url_is_the_picture_that_it_holds(model: herd.Model) -> None:
    url = {"type": "image_url", "image_url": {"url": _data_url(PICTURE)}}
    assert _tokens(model, [url, "?"]) == _tokens(model, [PICTURE, "?"])


def test_several_pictures_stand_where_they_were_put(model: herd.Model) -> None:
    small = Image.new("RGB", (30, 30), (200, 10, 10))
    prompt, answer = _tokens(model, [PICTURE, "or", small])
    assert prompt.count(BYTES.special_ids["<|image|>"]) == 2 and prompt.count(BYTES.special_ids["<|patch|>"]) == 4 * 6
    assert answer[0] == int(model.logits(prompt, images=[PICTURE, small])[-1].argmax())


def test_what_is_no_picture_is_refused(model: herd.Model) -> None:
    for source in (b"no picture", "data:image/png;base64,AAAA"):
        with pytest.raises(UsageError):
            _tokens(model, [{"type": "image", "image": source}])


def test_frames_of_a_video_are_pictures_of_their_own(model: herd.Model) -> None:
    with pytest.raises(UsageError, match="give each frame as a picture of its own"):
        model.logits([1, 2], images=[[PICTURE, PICTURE]])
