"""The catalogue is what it says: strict to read, exact in its counts, and helpful when a name is wrong."""

from __future__ import annotations

import pytest

from herd.errors import FileProblem, UsageError
from herd.family.catalogue import DEFAULT_NAME, Release, find, known, read_catalogue, releases
from herd.family.shapes import BUILDERS, config_of
from herd.models.sizes import count_parameters

SMALL = """
[shapes]
"s" = { architecture = "llama", width = 8, num_layers = 1, num_heads = 2, num_kv_heads = 1, head_width = 4, ffn_width = 16, vocab_size = 9 }
[generations."g"]
title = "G"
licence = "none"
licence_id = "none"
released = 2024-01-01
languages = ["en"]
inputs = ["text"]
outputs = ["text"]
vocabulary = "v"
layouts = ["huggingface"]
storage = "BF16"
context_length = 64
rope_theta = 10000.0
norm_eps = 1e-5
gated = false
[generations."g".sources]
parameters = "a sum"
shape = "a file"
context_length = "a card"
rope_theta = "a file"
norm_eps = "a file"
released = "a card"
[releases."r"]
generation = "g"
kind = "base"
shape = "s"
parameters = 1
"""


SHAPED = [release for release in releases().values() if release.shape is not None and release.shape.architecture in BUILDERS]

EXACT = {
    "llama-1-7b": 6_738_415_616,
    "llama-1-13b": 13_015_864_320,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b-chat": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "code-llama-7b": 6_738_546_688,
    "code-llama-7b-python": 6_738_415_616,
    "code-llama-13b-instruct": 13_016_028_160,
    "code-llama-13b-python": 13_015_864_320,
    "code-llama-34b": 33_743_970_304,
    "code-llama-70b-instruct": 68_976_910_336,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.3-70b-instruct": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-405b-instruct-fp8": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b-instruct-qlora": 3_212_749_824,
    "llama-3.2-11b-vision": 10_616_650_275,
    "llama-3.2-11b-vision-instruct": 10_629_184_035,
    "llama-3.2-90b-vision": 88_552_318_523,
    "llama-4-scout": 108_641_793_536,
    "llama-4-maverick-instruct-fp8": 401_583_781_376,
    "llama-guard-1-7b": 6_738_415_616,
    "llama-guard-2-8b": 8_030_261_248,
    "llama-guard-3-8b": 8_030_261_248,
    "llama-guard-3-1b": 1_235_814_400,
    "llama-guard-3-1b-int4": 1_123_076_096,
    "llama-guard-3-11b-vision": 10_629_184_035,
    "llama-guard-4-12b": 12_001_097_216,
    "prompt-guard-86m": 278_811_651,
    "prompt-guard-2-86m": 278_810_882,
    "prompt-guard-2-22m": 70_830_722,
    "muse-glimmer-30b": 29_776_626_688,
    "smollm2-135m": 134_515_008,
    "tinyllama-1.1b-chat": 1_100_048_384,
}
"""Published or counted elsewhere, and written here a second time."""


@pytest.mark.parametrize("name", EXACT)
def test_the_catalogue_has_the_exact_number_of_parameters(name: str) -> None:
    assert find(name).parameters == EXACT[name]


@pytest.mark.parametrize("release", SHAPED, ids=lambda release: release.name)
def test_parameters_are_the_sum_over_the_weights_of_the_model(release: Release) -> None:
    assert count_parameters(release.config()) == release.parameters


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("llama-3.2-11b-vision", 10_642_941_475),
        ("llama-3.2-11b-vision-instruct", 10_670_220_835),
        ("llama-3.2-90b-vision-instruct", 88_593_355_323),
    ],
)
def test_the_hugging_face_layout_of_llama_3_2_vision_stores_its_tile_embeddings_for_each_aspect_ratio(name: str, stored: int) -> None:
    """9 ratios of 4 tiles each where Meta has a grid of 4 x 4: twice a row per tile, once a row per patch of a tile."""
    release = find(name)
    vision = release.config().vision
    more = (9 * 4 - 4 * 4) * vision.width * (2 + vision.tile_rows)
    assert release.huggingface_parameters == stored == count_parameters(release.config()) + more


@pytest.mark.parametrize("release", releases().values(), ids=lambda release: release.name)
def test_every_release_can_be_fetched_or_says_why_not(release: Release) -> None:
    assert release.is_takeable() or release.unavailable
    assert release.name == release.name.lower()
    assert release.base is None or release.base in releases()
    assert release.is_released or (release.announced and not release.is_takeable())


@pytest.mark.parametrize("release", releases().values(), ids=lambda release: release.name)
def test_every_release_tells_what_people_choose_by(release: Release) -> None:
    assert release.kind in {"base", "instruct", "guard", "classifier"}
    assert set(release.inputs) <= {"text", "image", "video"} and set(release.outputs) <= {"text", "code", "label"}
    assert set(release.layouts) <= {"huggingface", "meta", "gguf", "executorch", "bitsandbytes"} and release.layouts
    assert (release.chat_format is None) or release.kind in {"instruct", "guard"}
    assert release.is_released == (release.context_length is not None and release.parameters is not None)
    assert (release.kind == "classifier") == bool(release.labels)
    assert (release.meta_shards is not None) <= ("meta" in release.layouts)
    assert release.licence_id and release.vocabulary and (release.languages or release.name in {"muse-glimmer-30b", "llama-4-behemoth"})


def test_what_was_never_published_has_announced_figures_and_no_shape() -> None:
    behemoth = find("llama-4-behemoth")
    assert not behemoth.is_released and behemoth.shape is None and behemoth.parameters is None
    assert behemoth.announced["active parameters"] == "288 billion" and "announced" in behemoth.sources
    assert (behemoth.languages, behemoth.knowledge_cutoff, behemoth.unverified) == ((), None, None), "said of Scout and Maverick only"
    with pytest.raises(UsageError, match="not known: Meta announced it"):
        behemoth.config()


def test_the_patterns_of_layers_of_llama_4() -> None:
    scout, maverick, guard = (find(name).config() for name in ("llama-4-scout", "llama-4-maverick", "llama-guard-4-12b"))
    assert [layer for layer in range(48) if layer not in scout.rotary_layers] == list(range(3, 48, 4))
    assert (scout.expert_layers, maverick.expert_layers, guard.expert_layers) == (tuple(range(48)), tuple(range(1, 48, 2)), ())
    assert (scout.qk_norm, maverick.qk_norm) == (True, False)
    assert scout.rope.scaling is not None and maverick.rope.scaling is None


def test_the_default_model_is_known_and_needs_no_account() -> None:
    release = find(DEFAULT_NAME)
    assert release.wheel is not None and not release.gated


def test_a_release_is_found_by_name_and_by_hub_id_whatever_the_case() -> None:
    names = ("llama-3.2-1b-instruct", "Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", " LLAMA-3.2-1b-instruct ")
    assert {find(name).name for name in names} == {"llama-3.2-1b-instruct"}


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lama-3.2-1b-instruct", "llama-3.2-1b-instruct"),
        ("llama3.2-1b", "llama-3.2-1b"),
        ("meta-llama/Llama-3.2-1B-Instrct", "llama-3.2-1b-instruct"),
        ("Maverick", "llama-4-maverick"),
        ("llama4", "llama-4-scout"),
        ("3.1 70b instruct", "llama-3.1-70b-instruct"),
        ("smollm", "smollm2-"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(wrong)
    assert f"did you mean {meant}" in str(caught.value) and "herd models" in str(caught.value)


def test_a_name_like_none_gets_no_suggestion() -> None:
    with pytest.raises(UsageError, match="herd models") as caught:
        find("x" * 10_000)
    assert "did you mean" not in str(caught.value) and len(str(caught.value)) < 300


def test_looking_up_one_name_gives_what_reading_all_gives() -> None:
    for name, release in releases().items():
        assert known(name) == release
        assert release.repository is None or known(release.repository) is not None
    assert known("nothing") is None and known("") is None


def test_a_release_overrides_its_generation() -> None:
    found = read_catalogue(SMALL + "context_length = 32\n")["r"]
    assert (found.context_length, found.title) == (32, "G")
    found = read_catalogue(SMALL + 'languages = []\nknowledge_cutoff = ""\n')["r"]
    assert (found.languages, found.knowledge_cutoff) == ((), None), "what is empty takes back what the generation says"
    with pytest.raises(FileProblem, match="lacks vocabulary"):
        read_catalogue(SMALL + 'vocabulary = ""\n')


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("parameters = 1", "parameters = 1\nparametres = 2"), "unknown key 'parametres'; did you mean 'parameters'"),
        (('storage = "BF16"', ""), "lacks storage"),
        (("parameters = 1", 'parameters = "1"'), "expected int"),
        (("parameters = 1", "parameters = true"), "expected int"),
        (('shape = "s"', 'shape = "t"'), "the catalogue has s"),
        (('generation = "g"', ""), "generation is None"),
        (('architecture = "llama", ', ""), "shapes.s.architecture is None"),
        (('norm_eps = "a file"', ""), "norm_eps has no source"),
        (('norm_eps = "a file"', 'norm_epsilon = "a file"'), "no field of a release"),
        (("[shapes]", "[forms]"), "has the table 'forms'"),
        (("[shapes]", "[shapes"), "not valid TOML"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(FileProblem) as caught:
        read_catalogue(SMALL.replace(*change))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("width = 8", "breadth = 8"), "has 'breadth'"),
        (("width = 8, ", ""), "lacks some of"),
        (('"llama"', '"lama"'), "of the architecture 'lama'"),
        (("rope_theta = 10000.0", ""), "lacks rope_theta"),
        (("context_length = 64", ""), "lacks context_length"),
        (("width = 8", "width = 8, norm_eps = 1e-5"), "has 'norm_eps'"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(change: tuple[str, str], complaint: str) -> None:
    release = read_catalogue(SMALL.replace(*change))["r"]
    assert release.shape is not None
    with pytest.raises(FileProblem) as caught:
        config_of(release, release.shape)
    assert complaint in str(caught.value)
