"""Values on the way through the cpu backend: read, replaced, and without effect on anybody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.seeing_models import STORIES, leaves_of
from herd.backends.base import BackendOptions, Plan, Span, StepResult, Watch
from herd.backends.reference import ReferenceBackend
from herd.dtypes import F32, Q8_0, DType
from herd.errors import UsageError
from herd.models.architecture import Config
from herd.models.weights import Kind, Matrix, TensorSpec
from tiny import tiny_llama

pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
CpuBackend = pytest.importorskip("herd.backends.cpu").CpuBackend

MODELS: dict[str, Config] = {
    "llama": tiny_llama(),
    "llama 4": STORIES["llama 4"]().cfg,
    "muse-glimmer": STORIES["muse-glimmer"]().cfg,
    "llama 3.2 vision": STORIES["llama 3.2 vision"]().cfg,
}
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 280, 90)]


@lru_cache(maxsize=8)
def stored(model: str, dtype: DType) -> Mapping[str, Matrix]:
    def format_of(spec: TensorSpec) -> DType:
        return F32 if spec.kind is Kind.ROUTER or spec.shape[-1] % 256 else dtype

    return leaves_of(MODELS[model], format_of)


def cpu(model: str = "llama", dtype: DType = F32, **options: Any) -> Any:
    options = {"threads": 2, "activations": "float32", "max_step_tokens": 128, "max_step_outputs": 128} | options
    backend = CpuBackend(MODELS[model], stored(model, dtype).__getitem__, BackendOptions(**options), lambda: None)
    backend.allocate(8)
    return backend


def reference(model: str = "llama", dtype: DType = F32) -> ReferenceBackend:
    backend = ReferenceBackend(MODELS[model], stored(model, dtype).__getitem__, BackendOptions(dtype="float64", activations="float32"))
    backend.allocate(8)
    return backend


def spans(model: str = "llama") -> tuple[Span, ...]:
    """Two sequences; one of them with pictures where the model takes some."""
    if model in STORIES:
        story = STORIES[model]()
        return Span(0, TOKENS[:9], [6], 2), story.span()
    return Span(0, TOKENS[:9], [6], 2), Span(0, TOKENS[9:80], [1, 4], 3)


def step(backend: Any, model: str = "llama", read: Any = (), patch: Mapping[str, Callable[[Any], Any]] | None = None) -> StepResult:
    result: StepResult = backend.step(Plan(spans(model), want_logits=True, watch=Watch(frozenset(read), patch or {})))
    return result


@pytest.mark.parametrize("model", MODELS)
def test_every_value_has_the_name_and_the_numbers_that_it_has_in_the_reference(model: str) -> None:
    ours, exact = cpu(model), reference(model)
    assert ours.value_names() == exact.value_names()
    names = [name for name in ours.value_names() if not name.endswith("router")]
    found, expected = (step(backend, model, names).values for backend in (ours, exact))
    assert set(found) == set(names)
    for name in names:
        pairs = zip(found[name], expected[name], strict=True) if name.endswith("weights") else [(found[name], expected[name])]
        for value, right in pairs:
            assert value.shape == right.shape and value.dtype == np.float32, name
            assert np.allclose(value, right, rtol=1e-3, atol=2e-4 * max(1.0, float(np.abs(right).max()))), name


@pytest.mark.parametrize("dtype", [F32, Q8_0], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("model", MODELS)
def test_reading_everything_changes_no_bit(model: str, dtype: DType) -> None:
    backend = cpu(model, dtype, activations="int8")
    alone = backend.step(Plan(spans(model), want_logits=True)).logits_RV
    assert np.array_equal(step(backend, model, backend.value_names()).logits_RV, alone)
    assert np.array_equal(step(backend, model, ["embed"]).logits_RV, alone)
    assert np.array_equal(backend.step(Plan(spans(model), want_logits=True)).logits_RV, alone)


def test_only_what_is_asked_for_is_read() -> None:
    values = step(cpu(), read=["layers.1.attention.heads", "logits"]).values
    assert {name: value.shape for name, value in values.items()} == {"layers.1.attention.heads": (80, 8, 32), "logits": (5, 320)}


@pytest.mark.parametrize(
    "name", ["embed", "layers.0.attention.k", "layers.0.attention.weights", "layers.1.ffn.hidden", "layers.0.middle", "final", "logits"]
)
@pytest.mark.parametrize("dtype", [F32, Q8_0], ids=lambda dtype: dtype.name)
def test_a_replaced_value_has_the_effect_that_it_has_in_the_reference(name: str, dtype: DType) -> None:
    patch = {name: lambda value: value * np.float32(0.5) + np.float32(0.01)}
    found, expected = (step(backend, read=[name], patch=patch) for backend in (cpu(dtype=dtype), reference(dtype=dtype)))
    assert found.logits_RV is not None and expected.logits_RV is not None
    assert np.abs(found.logits_RV - expected.logits_RV).max() < 2e-4
    untouched = cpu(dtype=dtype).step(Plan(spans(), want_logits=True)).logits_RV
    assert np.abs(found.logits_RV - untouched).max() > 1e-3


def test_a_replaced_value_is_read_as_replaced() -> None:
    result = step(cpu(), read=["layers.0.out"], patch={"layers.0.out": np.zeros_like})
    assert not result.values["layers.0.out"].any()


def test_several_values_are_replaced_in_the_order_in_which_they_arise() -> None:
    seen: list[str] = []

    def noting(name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        def note(value: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(name)
            return value

        return note

    names = ["layers.1.out", "embed", "layers.0.ffn.out", "logits"]
    backend = cpu()
    found = step(backend, patch={name: noting(name) for name in names})
    assert seen == ["embed", "layers.0.ffn.out", "layers.1.out", "logits"]
    assert np.array_equal(found.logits_RV, backend.step(Plan(spans(), want_logits=True)).logits_RV)


def test_what_a_patch_writes_to_the_cache_is_there_for_later_steps() -> None:
    backends = [cpu(), reference()]
    later = Plan((Span(71, [5], [1, 4], 1),), want_logits=True)
    rows = []
    for backend in backends:
        step(backend, patch={"layers.0.attention.v": lambda value: -value})
        rows.append(backend.step(later).logits_RV)
    assert np.abs(rows[0] - rows[1]).max() < 2e-4
    unpatched = cpu()
    unpatched.step(Plan(spans()))
    assert np.abs(unpatched.step(later).logits_RV - rows[0]).max() > 1e-3


def test_a_patch_of_another_shape_is_refused_and_the_model_goes_on() -> None:
    backend = cpu()
    before = backend.step(Plan(spans(), want_logits=True)).logits_RV
    with pytest.raises(UsageError, match=r"The patch of embed gave shape \[3\]; the value has \[80, 256\]"):
        step(backend, patch={"embed": lambda value: np.zeros(3)})
    assert np.array_equal(backend.step(Plan(spans(), want_logits=True)).logits_RV, before)


def test_what_a_patch_raises_goes_through_and_the_model_goes_on() -> None:
    backend = cpu()
    before = backend.step(Plan(spans(), want_logits=True)).logits_RV
    with pytest.raises(ValueError, match="could not be broadcast"):
        step(backend, patch={"layers.0.out": lambda value: value + np.zeros((3, 2))})
    assert np.array_equal(step(backend, read=["layers.0.out"]).logits_RV, before)


def test_a_name_that_no_value_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no value named layers\.7\.out"):
        step(cpu(), read=["layers.7.out"])


def test_watching_uses_new_weights_and_new_pages() -> None:
    backend = cpu()
    step(backend, read=["embed"])
    backend.update({"embed": leaves_of(MODELS["llama"], Q8_0)["embed"]})
    backend.allocate(7)
    unwatched = backend.step(Plan(spans(), want_logits=True)).logits_RV
    assert np.array_equal(step(backend, read=["embed"]).logits_RV, unwatched)


def test_drawing_from_watched_logits_uses_the_replaced_ones() -> None:
    from herd.sampling.draw import Draw
    from herd.sampling.params import SamplingParams

    def push(logits_RV: NDArray[np.float32]) -> NDArray[np.float32]:
        pushed = logits_RV.copy()
        pushed[:, 17] = 1e4
        return pushed

    draw = Draw(params=SamplingParams(temperature=0.0), seed=1, position=9)
    result = cpu().step(Plan((Span(0, TOKENS[:9], [0], 1, (draw,)),), watch=Watch(patch={"logits": push})))
    assert result.choices[0][0].token == 17


@pytest.mark.parametrize("name", ["crossing.0.attention.heads", "crossing.1.ffn.hidden"])
def test_values_of_blocks_that_cross_over_are_right_where_nobody_sees_a_picture(name: str) -> None:
    model, plan = "llama 3.2 vision", Plan((Span(0, TOKENS[:9], [6], 2),), watch=Watch(frozenset([name])))
    found, exact = (backend.step(plan).values[name] for backend in (cpu(model), reference(model)))
    assert np.allclose(found, exact, atol=1e-4)
