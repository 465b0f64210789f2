"""Muse-Glimmer against `transformers`: text, pictures and video, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

from conformance.running import in_chunks, logits_of, oracle, pages_for, prompt, whole
from herd.backends.base import BackendOptions, Placed, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.checkpoints.huggingface_muse_glimmer import NAMES
from herd.errors import UsageError
from herd.models import muse_glimmer
from herd.models.architecture import PictureShape
from herd.models.muse_glimmer import LayerKind, MuseGlimmerConfig
from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig
from herd.models.rope import Rope
from herd.models.sizes import count_parameters
from herd.models.weights import Dense, Kind, Matrix
from tiny import dense_f32

IMAGE, VIDEO, WINDOW, TOKENS = 290, 291, 20, 70
LOCAL, GLOBAL = LayerKind(WINDOW, True), LayerKind(None, False)
VISION = MuseGlimmerVisionConfig(
    width=32,
    num_heads=2,
    mlp_width=48,
    is_local=(True, False, True, False),
    patch=4,
    frames=2,
    grid=4,
    merge=2,
    norm_eps=1e-5,
    rope_theta=100.0,
    projector_width=40,
)
CFG = MuseGlimmerConfig(
    width=64,
    num_heads=4,
    num_kv_heads=2,
    head_width=16,
    ffn_width=96,
    vocab_size=300,
    context_length=256,
    norm_eps=1e-5,
    post_norm_eps=1e-4,
    rope=Rope(500.0, 16),
    layers=(GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL),
    query_factor=2.5,
    logit_factor=0.3,
    logit_cap=5.0,
    image_token=IMAGE,
    video_token=VIDEO,
    vision=VISION,
)
VARIANTS = {
    "as released": CFG,
    "biases, tied": replace(CFG, attention_bias=True, tied_embeddings=True),
    "positions where all is seen": replace(CFG, layers=(LayerKind(None, True), LayerKind(WINDOW, False), LOCAL)),
}


@dataclass(frozen=True)
class Cut:
    """A picture or video of random pixels."""

    pixels: NDArray[np.float32]
    rows: int
    columns: int
    digest: bytes

    @property
    def shape(self) -> PictureShape:
        tiles, _, height, width = self.pixels.shape
        return PictureShape(tiles, height, width, self.rows, self.columns)


def cut(frames: int, rows: int, columns: int, seed: int) -> Cut:
    size = (frames, 3, rows * 8, columns * 8)
    return Cut(np.random.default_rng(seed).standard_normal(size).astype(np.float32), rows, columns, bytes([seed]))


def leaves_of(cfg: MuseGlimmerConfig) -> dict[str, Matrix]:
    """Every weight random, norms and biases too."""
    rng = np.random.default_rng(1)

    def values(shape: tuple[int, ...], kind: Kind) -> NDArray[np.float64]:
        spread = 0.3 if kind in (Kind.NORM, Kind.BIAS) else 1.0 if kind is Kind.EMBEDDING else 1.5 / shape[-1] ** 0.5
        return rng.standard_normal(shape) * spread

    found: dict[str, Matrix] = {spec.name: dense_f32(values(spec.shape, spec.kind)) for spec in muse_glimmer.tensors(cfg)}
    found["norm"] = dense_f32(1 + values((cfg.width,), Kind.NORM))
    return found


@pytest.fixture(scope="module", params=VARIANTS)
def cfg(request: Any) -> MuseGlimmerConfig:
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def leaves(cfg: MuseGlimmerConfig) -> dict[str, Matrix]:
    return leaves_of(cfg)


@pytest.fixture(scope="module")
def theirs(cfg: MuseGlimmerConfig, leaves: Mapping[str, Matrix]) -> Any:
    """The same model in `transformers`, in float64."""
    from transformers import MuseGlimmerConfig as TheirConfig
    from transformers import MuseGlimmerForConditionalGeneration

    torch.set_num_threads(1)
    vision = VISION
    config = TheirConfig(
        text_config={
            "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.width,
            "intermediate_size": cfg.ffn_width,
            "num_hidden_layers": cfg.num_layers,
            "num_attention_heads": cfg.num_heads,
            "num_key_value_heads": cfg.num_kv_heads,
            "head_dim": cfg.head_width,
            "max_position_embeddings": cfg.context_length,
            "rms_norm_eps": cfg.norm_eps,
            "post_norm_eps": cfg.post_norm_eps,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention" if kind.window else "full_attention" for kind in cfg.layers],
            "layer_rope_theta": [cfg.rope.theta if kind.has_positions else 0 for kind in cfg.layers],
            "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope.theta},
            "qk_scale_factor": cfg.query_factor,
            "output_multiplier": cfg.logit_factor,
            "final_logit_softcapping": cfg.logit_cap,
            "attention_bias": cfg.attention_bias,
            "tie_word_embeddings": cfg.tied_embeddings,
            "eos_token_id": 1,
            "bos_token_id": 0,
        },
        vision_config={
            "patch_size": vision.patch,
            "pos_emb_height": vision.grid,
            "pos_emb_width": vision.grid,
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": len(vision.is_local),
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "layer_types": ["window_attention" if local else "full_attention" for local in vision.is_local],
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        out_hidden_size=vision.folded_width,
        projector_hidden_size=vision.projector_width,
        tie_word_embeddings=cfg.tied_embeddings,
        attn_implementation="sdpa",
    )
    model = MuseGlimmerForConditionalGeneration(config).double().eval()
    missing, unexpected = model.load_state_dict(hugging_face_values(cfg, leaves), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if cfg.tied_embeddings else set())
    model.model.language_model.rotary_emb.inv_freq = torch.tensor(cfg.rope.frequencies(), dtype=torch.float64)
    half = vision.width // vision.num_heads // 2
    axial = vision.rope_theta ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    model.model.vision_tower.rotary_emb.inv_freq = axial
    return model


def hugging_face_values(cfg: MuseGlimmerConfig, leaves: Mapping[str, Matrix]) -> dict[str, Any]:
    """Weights under their Hugging Face names; rows of rotary heads with their halves apart."""
    found = {}
    for spec in muse_glimmer.tensors(cfg):
        leaf = leaves[spec.name]
        assert isinstance(leaf, Dense)
        values = np.asarray(leaf.data).reshape(-1).view(np.float32).reshape(spec.shape).astype(np.float64)
        if spec.rotary_heads:
            values = values.reshape(spec.rotary_heads, -1, 2, *spec.shape[1:]).swapaxes(1, 2).reshape(spec.shape)
        parts = spec.name.split(".")
        number = next((part for part in parts if part.isdigit()), "")
        found[NAMES[".".join("{}" if part.isdigit() else part for part in parts)].replace("{}", number)] = torch.from_numpy(values.copy())
    return found


@pytest.fixture
def all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers falls back to float32 (norms, angles), it stays in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    to = torch.Tensor.to

    def wide(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        kwargs = {key: torch.float64 if each is torch.float32 else each for key, each in kwargs.items()}
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", wide)


def backend_of(cfg: MuseGlimmerConfig, leaves: Mapping[str, Matrix], dtype: str = "float64") -> ReferenceBackend:
    options = BackendOptions(dtype=dtype, activations="float32", max_step_tokens=1024, max_step_outputs=1024)
    backend = ReferenceBackend(cfg, leaves.__getitem__, options)
    backend.allocate(32)
    return backend


def test_text_equals_transformers(cfg: MuseGlimmerConfig, leaves: dict[str, Matrix], theirs: Any, all_in_float64: None) -> None:
    tokens = [token % IMAGE for token in prompt(replace(cfg, vision=None), TOKENS)]  # type: ignore[arg-type]  # any config with a vocabulary
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    ours = oracle(cfg, leaves, tokens)  # type: ignore[arg-type]
    assert ours.std() > 0.25 and abs(ours - expected).max() < 1e-10


def test_pictures_and_videos_equal_transformers(
    cfg: MuseGlimmerConfig, leaves: dict[str, Matrix], theirs: Any, all_in_float64: None
) -> None:
    """A picture larger than a window, one that is narrower, and a video of two pairs of frames."""
    cuts = [cut(1, 3, 5, 1), cut(1, 1, 2, 2), cut(4, 2, 2, 3)]
    tokens = [5, 6, *[IMAGE] * 15, 7, *[IMAGE] * 2, 8, *[VIDEO] * 4, 9, *[VIDEO] * 4, 10, 11, 12]
    backend = backend_of(cfg, leaves)
    placed = tuple(map(Placed, cuts, muse_glimmer.picture_positions(cfg, tokens, [each.shape for each in cuts])))
    assert [each.positions[0] for each in placed] == [2, 18, 21] and placed[2].positions[-1] == 29
    ours = backend.logits(Plan((Span(0, tokens, pages_for(len(tokens)), len(tokens), pictures=placed),)))
    with torch.inference_mode():
        expected = (
            theirs(
                torch.tensor([tokens]),
                pixel_values=torch.cat([patches_of(each) for each in cuts[:2]]),
                image_grid_thw=torch.tensor([[1, 6, 10], [1, 2, 4]]),
                pixel_values_videos=patches_of(cuts[2]),
                video_grid_thw=torch.tensor([[2, 4, 4]]),
            )
            .logits[0]
            .numpy()
        )
    # The shares of the table of positions are float32 there.
    assert abs(ours - expected).max() < 1e-6
    blind = theirs(torch.tensor([[5, 6, *[4] * (len(tokens) - 2)]])).logits[0].detach().numpy()
    assert abs(ours - blind).max() > 0.1


def patches_of(each: Cut) -> Any:
    """Pixels in the order in which transformers' processor gives them: frame, channel, row, column inside each patch."""
    from herd.images.pixels import muse_glimmer_patches

    return torch.from_numpy(muse_glimmer_patches(each.pixels, VISION.patch)).double()


def test_chunks_steps_and_company_change_nothing() -> None:
    leaves, tokens = leaves_of(CFG), [token % IMAGE for token in range(3, 3 + TOKENS)]
    exact = oracle(CFG, leaves, tokens)  # type: ignore[arg-type]
    for chunk in (1, 7, 33):
        assert np.allclose(in_chunks(backend_of(CFG, leaves), tokens, chunk), exact, atol=1e-6)
    other = tokens[::-1][:41]
    both = logits_of(backend_of(CFG, leaves), whole(tokens), whole(other, 8))
    assert np.allclose(both, np.concatenate([exact, oracle(CFG, leaves, other)]), atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"query_factor": 3.0},
        {"logit_factor": 0.5},
        {"logit_cap": 2.0},
        {"post_norm_eps": 1e-1},
        {"layers": (LayerKind(WINDOW + 1, True),) * 5},
        {"layers": (GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL)},
        {"rope": Rope(600.0, 16)},
    ],
)
def test_every_switch_changes_the_logits(change: dict[str, Any]) -> None:
    leaves, tokens = leaves_of(CFG), [token % IMAGE for token in range(3, 3 + TOKENS)]
    before, after = (oracle(each, leaves, tokens) for each in (CFG, replace(CFG, **change)))  # type: ignore[arg-type]
    assert abs(before - after).max() > 1e-3


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, *[IMAGE] * 3], r"picture 1 is 2 x 2 cells and needs 4 tokens 290 in its place; the prompt has 3 there"),
        ([5, *[VIDEO] * 4], r"picture 1 is 2 x 2 cells and needs 4 tokens 290 in its place; the prompt has 0 there"),
        ([5, *[IMAGE] * 6], r"has 6 picture tokens \(290 or 291\); the 1 pictures given fill 4 of them"),
    ],
)
def test_picture_tokens_that_do_not_fit_are_refused(tokens: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        muse_glimmer.picture_positions(CFG, tokens, [cut(1, 2, 2, 1).shape])


def test_the_released_shape_has_the_parameters_that_its_name_says() -> None:
    kinds = tuple(GLOBAL if (51 - index) % 4 == 0 else LayerKind(2048, True) for index in range(52))
    vision = replace(VISION, width=1536, num_heads=16, mlp_width=8960, patch=14, grid=32, projector_width=4096, is_local=(True,) * 50)
    cfg = replace(
        CFG, width=6656, num_heads=32, num_kv_heads=2, head_width=128, ffn_width=19968, vocab_size=202048, layers=kinds, vision=vision
    )
    assert 29e9 < count_parameters(cfg) < 31e9
