"""`herd models` and `herd show` on what the family knows: lists, filters, two side by side, and what is not here."""

from __future__ import annotations

import json

import pytest

from cli.running import invoke
from herd.family.catalogue import releases


def listed(*words: str) -> list[str]:
    return [row["name"] for row in json.loads(invoke("models", "--json", *words).output)["models"]]


def test_models_are_filtered_by_name_kind_and_what_they_take() -> None:
    assert listed("--takes", "video") == ["muse-glimmer-30b"]
    assert "llama-3.2-11b-vision" in listed("--takes", "image") and "llama-3.1-8b" not in listed("--takes", "image")
    assert set(listed("--kind", "classifier")) == {"prompt-guard-86m", "prompt-guard-2-86m", "prompt-guard-2-22m"}
    assert all("maverick" in name for name in listed("maverick")) and len(listed("maverick")) == 3
    assert set(listed("scout", "behemoth", "--kind", "base")) == {"llama-4-scout", "llama-4-behemoth"}


def test_models_says_what_was_never_released_and_what_cannot_be_pulled() -> None:
    rows = {line.split()[0]: line for line in invoke("models").output.splitlines()}
    assert rows["llama-4-behemoth"].endswith("not released")
    assert rows["llama-1-7b"].endswith("cannot be pulled")
    assert rows["llama-3.2-1b"].endswith("needs a licence")
    assert len(rows) == len(releases()) + 1


def test_a_filter_that_leaves_nothing_says_what_else_there_is() -> None:
    assert "did you mean" in invoke("models", "lamma-3.2-1b").output
    assert "herd models" in invoke("models", "--here", "--kind", "guard").output


def test_two_models_side_by_side() -> None:
    output = invoke("models", "--compare", "llama-3.1-8b", "llama-3.2-3b").output
    for piece in (
        "8,030,261,248",
        "3,212,749,824",
        "16.1 GB",
        "131.1 kB",
        "114.7 kB",
        "Llama 3.2 Community License",
        "MMLU (5-shot)",
        "66.7",
        "58",
    ):
        assert piece in output, piece
    assert "two sources" in output


def test_models_side_by_side_for_programs() -> None:
    found = json.loads(invoke("models", "--compare", "llama-4-scout", "llama-4-maverick", "llama-4-behemoth", "--json").output)
    scout, maverick, behemoth = found["models"].values()
    assert (scout["active_parameters"], maverick["parameters"]) == (17_172_894_720, 401_583_781_376)
    assert scout["cache_bytes_per_token"] == 196_608 and scout["bytes_at_4_bits"] < 80e9
    assert behemoth["parameters"] is None and behemoth["released"] is None and behemoth["announced"]["active parameters"] == "288 billion"
    (row,) = [row for row in found["scores"] if row["benchmark"] == "MMLU (5-shot)"]
    assert row["one_source"] and row["values"]["llama-4-scout"] == {"value": 79.6, "source": "Llama 4 model card"}


def test_announced_figures_are_marked_as_such_beside_real_ones() -> None:
    output = invoke("models", "--compare", "llama-4-maverick", "llama-4-behemoth").output
    assert "nearly 2 trillion (announced)" in output and "not stated" in output


def test_a_comparison_without_a_common_score_says_where_the_scores_are() -> None:
    output = invoke("models", "--compare", "llama-3.1-8b-instruct", "llama-4-scout-instruct").output
    assert "for more than one of them in the same way; `herd show NAME` lists each one's scores." in " ".join(output.split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("models", "--compare"), "takes two or more models"),
        (("models", "--compare", "llama-3.1-8b"), "takes two or more models"),
        (("models", "--compare", "llama-3.1-8b", "Llama-3.1-8B"), "named twice"),
        (("models", "--compare", "llama-3.1-8b", "lama-3.2-3b"), "did you mean llama-3.2-3b"),
        (("models", "--compare", "--here", "llama-3.1-8b", "llama-3.2-3b"), "are for the list"),
        (("show", "llama-4-behemoth", "--context", "10"), "shape of llama-4-behemoth is not known"),
        (("pull", "./model.gguf"), "Use it where it is: herd chat ./model.gguf"),
        (("pull", "/models/llama"), "needs no fetching"),
        (("pull", "llama-4-behemoth"), "has not released it"),
        (("pull", "llama-guard-3-8b-int8"), "bitsandbytes"),
    ],
)
def test_bad_input(words: tuple[str, ...], complaint: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2 and complaint in done.output, done.output


@pytest.mark.parametrize("name", releases())
def test_every_release_can_be_shown(name: str) -> None:
    found = json.loads(invoke("show", name, "--json").output)
    release = releases()[name]
    assert found["release"]["licence"]["value"] == release.licence
    assert ("architecture" in found) == (release.shape is not None)
    if release.parameters is not None:
        assert found["architecture"]["parameters"]["value"] == release.parameters
    assert "{" not in invoke("show", name).output


def test_show_tells_scores_with_their_sources_and_what_is_not_verified() -> None:
    output = invoke("show", "llama-3.2-1b-instruct-spinquant").output
    for piece in ("47.3   [Llama 3.2 model card]", "not verified", "temperature 0.6, top p 0.9", "not here; fetch it with"):
        assert piece in output, piece
    assert "announced and not released" in invoke("show", "llama-4-behemoth").output
