"""The catalogue is what it says: strict to read, exact in its counts, and helpful when a name is wrong."""

from __future__ import annotations

import pytest

from herd.errors import FileProblem, UsageError
from herd.family.catalogue import DEFAULT_NAME, Release, find, read_catalogue, releases
from herd.models.sizes import count_parameters

SMALL = """
[shapes]
"s" = { width = 8, num_layers = 1, num_heads = 2, num_kv_heads = 1, head_width = 4, ffn_width = 16, vocab_size = 32 }
[generations."g"]
title = "G"
licence = "none"
released = 2024-01-01
languages = ["en"]
context_length = 64
rope_theta = 10000.0
norm_eps = 1e-5
gated = false
[releases."r"]
generation = "g"
shape = "s"
parameters = 1
"""


@pytest.mark.parametrize("release", releases().values(), ids=lambda release: release.name)
def test_parameters_are_the_sum_over_the_weights_of_the_model(release: Release) -> None:
    assert count_parameters(release.config()) == release.parameters


@pytest.mark.parametrize("release", releases().values(), ids=lambda release: release.name)
def test_every_release_can_be_fetched_or_says_why_not(release: Release) -> None:
    assert release.repository or release.wheel or release.unavailable
    assert release.name == release.name.lower()


def test_the_default_model_is_known_and_needs_no_account() -> None:
    release = find(DEFAULT_NAME)
    assert release.wheel is not None and not release.gated


def test_a_release_is_found_by_name_and_by_hub_id_whatever_the_case() -> None:
    names = ("llama-3.2-1b-instruct", "Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", " LLAMA-3.2-1b-instruct ")
    assert {find(name).name for name in names} == {"llama-3.2-1b-instruct"}


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"did you mean llama-3\.2-1b-instruct"):
        find("lama-3.2-1b-instruct")
    with pytest.raises(UsageError, match="herd models"):
        find("x" * 10_000)


def test_a_release_overrides_its_generation() -> None:
    found = read_catalogue(SMALL + "context_length = 32\n")["r"]
    assert (found.context_length, found.title) == (32, "G")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("parameters = 1", "parameters = 1\nparametres = 2"), "unknown key 'parametres'; did you mean 'parameters'"),
        (("parameters = 1", ""), "lacks parameters"),
        (("parameters = 1", 'parameters = "1"'), "expected int"),
        (("parameters = 1", "parameters = true"), "expected int"),
        (('shape = "s"', 'shape = "t"'), "the catalogue has s"),
        (('generation = "g"', ""), "generation is None"),
        (("width = 8", "breadth = 8"), "unknown key 'breadth'"),
        (("[shapes]", "[forms]"), "has the table 'forms'"),
        (("[shapes]", "[shapes"), "not valid TOML"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(FileProblem) as caught:
        read_catalogue(SMALL.replace(*change))
    assert complaint in str(caught.value)
