"""Small models that take pictures, one of each architecture, with a text that has pictures in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance import llama3_vision_texts
from conformance.llama4 import cut as llama4_cut
from conformance.llama4 import with_pictures
from conformance.running import pages_for, prompt
from herd.backends.base import Placed, Span
from herd.dtypes import F32, DType
from herd.models.architecture import Config, PictureShape, seeing
from herd.models.muse_glimmer import LayerKind, MuseGlimmerConfig
from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig
from herd.models.rope import Rope
from herd.models.weights import Kind, Matrix, TensorSpec
from tiny import dense_f32, random_leaves, random_values, tiny_llama4, tiny_llama4_vision

IMAGE, VIDEO = 290, 291
MUSE = MuseGlimmerConfig(
    width=256,
    num_heads=8,
    num_kv_heads=2,
    head_width=32,
    ffn_width=512,
    vocab_size=300,
    context_length=512,
    norm_eps=1e-5,
    post_norm_eps=1e-4,
    rope=Rope(500.0, 32),
    layers=(LayerKind(None, False), LayerKind(20, True), LayerKind(70, True)),
    query_factor=2.5,
    logit_factor=0.3,
    logit_cap=5.0,
    attention_bias=True,
    image_token=IMAGE,
    video_token=VIDEO,
    vision=MuseGlimmerVisionConfig(
        width=256,
        num_heads=8,
        mlp_width=512,
        is_local=(True, False),
        patch=16,
        frames=1,
        grid=4,
        merge=2,
        norm_eps=1e-5,
        rope_theta=100.0,
        projector_width=256,
    ),
)


@dataclass(frozen=True)
class Cut:
    """A picture of random pixels, cut into cells."""

    pixels: np.ndarray[Any, np.dtype[np.float32]]
    rows: int
    columns: int
    digest: bytes


@dataclass(frozen=True)
class Story:
    """A config, and a text with its pictures."""

    cfg: Config
    tokens: Sequence[int]
    pictures: Sequence[Any]

    @property
    def placed(self) -> tuple[Placed, ...]:
        model = seeing(self.cfg)
        assert model is not None
        shapes = [PictureShape(len(each.pixels), *each.pixels.shape[2:], each.rows, each.columns) for each in self.pictures]
        return tuple(map(Placed, self.pictures, model.picture_positions(self.cfg, self.tokens, shapes)))

    def span(self, start: int = 0, stop: int | None = None, first_page: int = 0) -> Span:
        """A stretch of the text with all of its pictures, all logits wanted."""
        piece = list(self.tokens[start:stop])
        return Span(start, piece, pages_for(len(self.tokens), first_page), len(piece), pictures=self.placed)


def _llama4() -> Story:
    cfg = tiny_llama4(vision=tiny_llama4_vision())
    assert cfg.vision is not None
    pictures = [llama4_cut(cfg.vision, 1, 2, 1), llama4_cut(cfg.vision, 1, 1, 2)]
    words = [token if token != cfg.vision.picture_token else 1 for token in prompt(cfg, 90)]
    return Story(cfg, with_pictures(cfg, pictures, words), pictures)


def _crossing(name: str) -> Story:
    tokens, pictures = llama3_vision_texts.TEXTS[name]
    return Story(llama3_vision_texts.CFG, [*tokens, *llama3_vision_texts.text(40, 9)], pictures)


def _muse() -> Story:
    random = np.random.default_rng(6)
    cuts = [
        Cut(random.standard_normal((1, 3, 32 * rows, 32 * columns)).astype(np.float32), rows, columns, bytes([rows]))
        for rows, columns in ((2, 3), (1, 1))
    ]
    words = [token % IMAGE for token in prompt(replace(MUSE, vision=None), 80)]
    return Story(MUSE, [*words[:7], *[IMAGE] * 6, 5, IMAGE, *words[7:]], cuts)


STORIES: dict[str, Callable[[], Story]] = {
    "llama 4": _llama4,
    "llama 3.2 vision": lambda: _crossing("two pictures with text between"),
    "llama 3.2 vision, runs of pictures": lambda: _crossing("a run, text, a run"),
    "muse-glimmer": _muse,
}


def leaves_of(cfg: Config, dtype: DType | Callable[[TensorSpec], DType] = F32) -> Mapping[str, Matrix]:
    """Random weights; the norms that count from one are small."""
    leaves = random_leaves(cfg, dtype=dtype)
    if isinstance(cfg, MuseGlimmerConfig):
        specs = {spec.name: spec for spec in _specs(cfg)}
        centred = [spec for name, spec in specs.items() if spec.kind is Kind.NORM and name.startswith("layers.")]
        leaves = {**leaves, **{spec.name: dense_f32(random_values(spec) - 1) for spec in centred}}
    return leaves


def _specs(cfg: MuseGlimmerConfig) -> list[TensorSpec]:
    from herd.models.muse_glimmer import tensors

    return list(tensors(cfg))
