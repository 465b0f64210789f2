"""Folders of Llama 3.2 Vision and Llama Guard 3 Vision in Hugging Face layout: `mllama`.

What differs from llama: layers are counted with the crossing blocks (`cross_attention_layers` says which those are), the embedding has
eight rows more than `vocab_size`, and the tables of places are written out for each shape of picture (`mllama_places.py`).

Source: transformers `configuration_mllama.py` and `modeling_mllama.py`, versions 4.45 to 5.23; defaults are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from herd.checkpoints import mllama_names
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.huggingface_config import CONCLUSION, FILE, HARMLESS, TRAINING
from herd.checkpoints.huggingface_rope import read_rope
from herd.checkpoints.mllama_places import places_of_tiles, shapes_of_pictures
from herd.checkpoints.sources import Interleaved, Reshaped
from herd.checkpoints.stored import Source
from herd.models.encoder_blocks import NORM_EPS
from herd.models.llama3_vision import META_PICTURE, META_VOCABULARY, Llama3VisionConfig
from herd.models.llama3_vision_encoder import CHANNELS, EncoderConfig
from herd.models.weights import TensorSpec

PLACES = ("vision.tile_positions", "vision.before", "vision.after")
MAX_TILES = 64
# What transformers up to 4.5x wrote into every config, for whatever the model is used to generate.
SETTINGS = dict.fromkeys(
    (
        "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty",
        "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
        "num_return_sequences", "output_scores", "prefix", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
        "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "top_k",
        "top_p", "typical_p",
    ),
    "a setting for generating, which generation_config.json has where the release has one",
)  # fmt: skip
INNER_HARMLESS = HARMLESS | SETTINGS | {"dropout": TRAINING, "architectures": "the outer object names the architecture"}


class Reader:
    """Reads one folder: what tensors are called depends on the config."""

    names = {name: name for name in mllama_names.HUGGING_FACE.values()} | {
        name: mllama_names.HUGGING_FACE[name] for name in ("embed", "head")
    }
    spelled = staticmethod(mllama_names.as_published)

    def read_config(self, values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> Llama3VisionConfig:
        """The config; `facts` collects where each number came from. One `FileProblem` for all that is wrong."""
        r = ConfigReader(values, where, facts)
        r.expect("model_type", "mllama", because="this is the reader of Llama 3.2 Vision")
        r.expect("architectures", ["MllamaForConditionalGeneration"], because="other heads are no language models")
        _refuse_foreign(r)
        text, vision = (r.within(key, _object(r, key)) for key in ("text_config", "vision_config"))
        r.expect("tie_word_embeddings", False, because="the head is a matrix of its own")
        self._cfg = _text(text, _vision(vision))
        picture = r.integer("image_token_index", lowest=0, highest=MAX_VOCABULARY, default=META_VOCABULARY)
        r.expect("image_token_id", picture, because="image_token_index says so")
        if picture != self._cfg.picture_id:
            r.problem(f"image_token_index is {picture}; it must be vocab_size, {self._cfg.picture_id}: the first row after the vocabulary")
        facts["architecture"] = Fact("llama3_vision", f"model_type in {FILE}")
        r.finish(CONCLUSION, HARMLESS | SETTINGS)
        return self._cfg

    def stored(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensor of a file that holds this weight, under its name and with its shape there."""
        name = mllama_names.in_huggingface(self._cfg, spec.name)
        return (replace(spec, name=name, shape=stored_shape(self._cfg, spec)),)

    def source(self, spec: TensorSpec, found: Mapping[str, Source]) -> Source:
        """Where a weight comes from, given the tensors that `stored` names."""
        tensor = found[mllama_names.in_huggingface(self._cfg, spec.name)]
        if spec.name in PLACES:
            vision = self._cfg.vision
            return places_of_tiles(tensor, vision.max_tiles, rows_of_a_place(self._cfg, spec.name), vision.width)
        if spec.rotary_heads:
            return Interleaved(tensor, spec.rotary_heads)
        return tensor if tensor.shape == spec.shape else Reshaped(tensor, spec.shape)


def stored_shape(cfg: Llama3VisionConfig, spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a weight in these folders."""
    vision = cfg.vision
    if spec.name in PLACES:
        shapes = len(shapes_of_pictures(vision.max_tiles)) + 1
        return (shapes, vision.max_tiles * rows_of_a_place(cfg, spec.name) * vision.width)
    theirs = {"vision.patches": (vision.width, CHANNELS, vision.patch, vision.patch), "vision.class_row": (vision.width,)}
    return theirs.get(spec.name, spec.shape)


def rows_of_a_place(cfg: Llama3VisionConfig, name: str) -> int:
    """How many rows of the table `name` belong to one place of the grid of tiles."""
    return cfg.vision.tile_rows if name == "vision.tile_positions" else 1


def _object(r: ConfigReader, key: str) -> Mapping[str, Any]:
    value = r.raw(key)
    if isinstance(value, dict):
        return value
    r.problem(f"{key} is {shown(value)}; allowed is an object")
    return {}


def _refuse_foreign(r: ConfigReader) -> None:
    """Keys that would change the mathematics, at their values that do not."""
    r.expect("quantization_config", because="quantised Hugging Face folders are not read; take the folder in bf16")
    r.expect("auto_map", because="code that comes with a model is never run")
    r.expect("is_encoder_decoder", False, because="the text model only decodes")
    r.expect("add_cross_attention", False, because="cross_attention_layers says where the text crosses over")
    r.expect("pruned_heads", {}, because="heads are whole")
    r.expect("attention_bias", False, because="its projections have no bias")
    r.expect("mlp_bias", False, because="its feed-forward has no bias")


def _text(r: ConfigReader, vision: EncoderConfig) -> Llama3VisionConfig:
    r.expect("model_type", "mllama_text_model", because="the text part of Llama 3.2 Vision is expected")
    r.expect("hidden_act", "silu", because="the feed-forward is gated with SiLU")
    r.expect("tie_word_embeddings", False, because="the head is a matrix of its own")
    _refuse_foreign(r)
    width = r.integer("hidden_size", "width", highest=MAX_WIDTH, default=4096)
    num_heads = r.integer("num_attention_heads", "num_heads", highest=MAX_HEADS, default=32)
    if width % num_heads:
        r.problem(f"{r.prefix}hidden_size is {width}, which num_attention_heads {num_heads} does not divide")
    head_width = max(1, width // num_heads)
    r.expect("head_dim", head_width, because="heads share the width evenly")
    num_layers, crossing = _layers(r)
    vocab_size = r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY, default=META_VOCABULARY)
    context_length = r.integer("max_position_embeddings", "context_length", highest=MAX_CONTEXT, default=131072)
    cfg = Llama3VisionConfig(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.integer("num_key_value_heads", "num_kv_heads", highest=MAX_HEADS, default=8),
        head_width=head_width,
        ffn_width=r.integer("intermediate_size", "ffn_width", highest=MAX_VOCABULARY, default=14336),
        vocab_size=vocab_size,
        context_length=context_length,
        norm_eps=r.number("rms_norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        rope=read_rope(r, head_width, context_length, default_theta=500000.0),
        crossing=crossing,
        vision=vision,
        picture_aliases=(META_PICTURE,) if vocab_size == META_VOCABULARY else (),
    )
    r.settle(INNER_HARMLESS)
    return cfg


def _layers(r: ConfigReader) -> tuple[int, tuple[int, ...]]:
    """The text model's layers, and those of them with a crossing block before them. `num_hidden_layers` counts both together, and
    `cross_attention_layers` numbers the blocks so."""
    together = r.integer("num_hidden_layers", highest=MAX_LAYERS, default=40)
    blocks = r.raw("cross_attention_layers")
    if blocks is None:
        blocks = [3, 8, 13, 18, 23, 28, 33, 38]
    if not isinstance(blocks, list) or any(not isinstance(each, int) or not 0 <= each < together - 1 for each in blocks):
        r.problem(f"{r.prefix}cross_attention_layers is {shown(blocks)}; allowed is a list of whole numbers from 0 to {together - 2}")
        return 1, ()
    crossing = tuple(each - before for before, each in enumerate(sorted(blocks)))
    if len(set(crossing)) != len(crossing):
        r.problem(f"{r.prefix}cross_attention_layers is {shown(blocks)}; each must stand before a layer of the text model, not another")
        return 1, ()
    num_layers = together - len(blocks)
    if crossing and crossing[-1] >= num_layers:
        r.problem(f"{r.prefix}cross_attention_layers is {shown(blocks)}; the last must have a layer of the text model after it")
        return 1, ()
    r.note("num_layers", num_layers, "num_hidden_layers less cross_attention_layers")
    r.note("crossing", crossing, "cross_attention_layers")
    return num_layers, crossing


def _vision(r: ConfigReader) -> EncoderConfig:
    r.expect("model_type", "mllama_vision_model", because="the vision part of Llama 3.2 Vision is expected")
    r.expect("hidden_act", "gelu", because="the vision part has the exact GELU")
    r.expect("num_channels", CHANNELS, because="pictures have three colours")
    r.expect("norm_eps", NORM_EPS, because="Meta's layer norms have it")
    _refuse_foreign(r)
    num_layers = r.integer("num_hidden_layers", "vision.num_layers", highest=MAX_LAYERS, default=32)
    cfg = EncoderConfig(
        tile=r.uniform("image_size", "vision.tile", highest=MAX_WIDTH, count=2, default=448),
        patch=r.uniform("patch_size", "vision.patch", highest=MAX_WIDTH, count=2, default=14),
        max_tiles=r.integer("max_num_tiles", "vision.max_tiles", highest=MAX_TILES, default=4),
        width=r.integer("hidden_size", "vision.width", highest=MAX_WIDTH, default=1280),
        num_layers=num_layers,
        num_global_layers=r.integer("num_global_layers", "vision.num_global_layers", lowest=0, highest=MAX_LAYERS, default=8),
        num_heads=r.integer("attention_heads", "vision.num_heads", highest=MAX_HEADS, default=16),
        ffn_width=r.integer("intermediate_size", "vision.ffn_width", highest=MAX_VOCABULARY, default=5120),
        kept=_kept(r, num_layers),
    )
    r.expect("num_attention_heads", cfg.num_heads, because="attention_heads says so")
    features = r.integer("vision_output_dim", highest=MAX_VOCABULARY, default=7680)
    if features != cfg.num_features:
        r.problem(f"{r.prefix}vision_output_dim is {features}; the last values and {len(cfg.kept)} kept ones are {cfg.num_features} wide")
    if cfg.width % cfg.num_heads:
        r.problem(f"{r.prefix}hidden_size is {cfg.width}, which attention_heads {cfg.num_heads} does not divide")
    if cfg.tile % cfg.patch:
        r.problem(f"{r.prefix}image_size is {cfg.tile}; it must be whole patches of {cfg.patch}")
    shapes = [list(shape) for shape in shapes_of_pictures(cfg.max_tiles)]
    r.expect("supported_aspect_ratios", shapes, because="these are all shapes of that many tiles, in the order of its tables")
    r.settle(INNER_HARMLESS)
    return cfg


def _kept(r: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """`intermediate_layers_indices`. The config of the release means the inputs of these layers, as Meta's code does."""
    kept = r.raw("intermediate_layers_indices")
    if kept is None:
        kept = [3, 7, 15, 23, 30]
    if not isinstance(kept, list) or any(not isinstance(each, int) or not 0 <= each < num_layers for each in kept):
        r.problem(f"{r.prefix}intermediate_layers_indices is {shown(kept)}; allowed is a list of layers from 0 to {num_layers - 1}")
        return ()
    r.note("vision.kept", tuple(kept), "intermediate_layers_indices")
    return tuple(kept)
