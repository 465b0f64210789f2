"""What a model's keys and values take is known before it is loaded: the same as what the loaded model says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import herd
from conformance.running import cpu_is_built
from herd.api.caching import cache_needs
from herd.checkpoints.open import open_checkpoint
from herd.dtypes import Q8_0
from herd.errors import CapacityError
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf

FORMS = ("auto", "float32", "float16", "int8", "int4")
KEPT = [("reference", form) for form in FORMS[:3]] + [("cpu", form) for form in FORMS if cpu_is_built()]
KEPT += [("torch", "auto")] if find_spec("torch") is not None else []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """One with plain weights, and one with quantised ones."""
    folder, cfg = tmp_path_factory.mktemp("needs"), tiny_llama(context_length=512)
    plain = write_gguf(folder / "plain.gguf", cfg, random_leaves(cfg))
    return {False: plain, True: write_gguf(folder / "quantised.gguf", cfg, random_leaves(cfg, dtype=Q8_0))}


def needs(path: Path, load: dict[str, Any]) -> tuple[int, int | None]:
    checkpoint = open_checkpoint(path)
    try:
        return cache_needs(checkpoint, load)
    finally:
        checkpoint.close()


@pytest.mark.parametrize("is_quantised", [False, True])
@pytest.mark.parametrize(("backend", "form"), KEPT)
def test_the_least_that_is_needed_is_one_page_and_the_most_is_all_contexts(
    models: dict[bool, Path], backend: str, is_quantised: bool, form: str
) -> None:
    load: dict[str, Any] = {"backend": backend, "parallel": 3, "kv_cache": form}
    least, most = needs(models[is_quantised], load)
    with herd.load(models[is_quantised], **load, cache_bytes=least) as model:
        assert model.provider.engine.page_bytes == least and most == 3 * (512 // 64) * least
    with pytest.raises(CapacityError, match="bytes are left for keys and values"):
        herd.load(models[is_quantised], **load, cache_bytes=least - 1)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_computed_in_says_how_torch_keeps_it(models: dict[bool, Path], dtype: str) -> None:
    load: dict[str, Any] = {"backend": "torch", "dtype": dtype}
    least, _ = needs(models[False], load)
    with herd.load(models[False], **load, cache_bytes=least) as model:
        assert model.provider.engine.page_bytes == least
    assert needs(models[False], {**load, "device": "cuda"}) == (0, None), "a GPU's memory is not this computer's"


def test_pages_on_their_way_to_the_disk_count(models: dict[bool, Path], tmp_path: Path) -> None:
    load: dict[str, Any] = {"backend": "reference", "cache_folder": str(tmp_path / "cache")}
    least, _ = needs(models[False], load)
    with herd.load(models[False], **load, cache_bytes=least) as model:
        assert model.provider.engine.page_bytes < least // 2
    with pytest.raises(CapacityError, match="on their way to and from the disk"):
        herd.load(models[False], **load, cache_bytes=least - 1)
