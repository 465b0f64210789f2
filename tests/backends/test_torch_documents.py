"""The operations without a cache and under gradients: packed documents say what each says alone, and slopes are the real ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from conformance import test_muse_glimmer
from conformance.running import logits_of, make_backend, prompt, whole
from herd import dtypes
from herd.backends.torch.documents import Documents, packed_step
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.products import product
from herd.backends.torch.tensors import Tensors
from herd.models.architecture import Config, architecture_of
from herd.models.ops import Chunks, Sliding
from herd.models.weights import Adapted, Dense, Matrix
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama4

CPU = torch.device("cpu")
SMALL = tiny_llama(num_layers=1, qkv_bias=True, tied_embeddings=True)
CONFIGS: dict[str, tuple[Config, Mapping[str, Matrix]]] = {
    "llama": (tiny_llama(), random_leaves(tiny_llama())),
    "llama 4": (tiny_llama4(num_chosen=2), random_leaves(tiny_llama4(num_chosen=2))),
    "muse-glimmer": (test_muse_glimmer.CFG, test_muse_glimmer.leaves_of(test_muse_glimmer.CFG)),
}


def run(cfg: Config, leaves: Mapping[str, Matrix], documents: list[list[int]], tensors: Tensors) -> Tensor:
    model = architecture_of(cfg)
    weights = model.weights(cfg, leaves.__getitem__)
    logits_TV: Tensor = model.forward(weights, cfg, packed_step(cfg, TorchOps(tensors), documents))
    return logits_TV


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_packed_documents_say_what_each_says_through_the_cache(name: str, dtype: str) -> None:
    cfg, leaves = CONFIGS[name]
    documents = [[token % 280 for token in prompt(cfg, length, seed=length)] for length in (1, 70, 25)]
    packed = run(cfg, leaves, documents, Tensors(CPU, getattr(torch, dtype))).detach().double().numpy()
    backend = make_backend("torch", cfg, leaves, activations="float32", dtype=dtype)
    alone = np.concatenate([logits_of(backend, whole(document)) for document in documents])
    if dtype == "float64":
        assert abs(packed - alone).max() < 1e-5, "the cached ones come back as float32"
    else:
        assert np.median(abs(packed - alone)) < alone.std() / 50


def test_only_the_wanted_rows_come_back() -> None:
    cfg, leaves = CONFIGS["llama"]
    tensors, documents = Tensors(CPU, torch.float64), [[1, 2, 3], [4, 5]]
    model = architecture_of(cfg)
    step = packed_step(cfg, TorchOps(tensors), documents, outputs=[2, 4])
    some = model.forward(model.weights(cfg, leaves.__getitem__), cfg, step)
    assert torch.allclose(some, run(cfg, leaves, documents, tensors)[[2, 4]], atol=1e-12)


@pytest.mark.parametrize("window", [None, Chunks(3), Sliding(4), Sliding(100)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_attention_are_the_slopes(window: Chunks | Sliding | None, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    qkv = [torch.randn((9, heads, 4), dtype=dtype, generator=random, requires_grad=True) for heads in (4, 2, 2)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Documents((2, 7)).attend(q, k, v, 0.5, window)

    if dtype is torch.float64:
        assert torch.autograd.gradcheck(attend, qkv, fast_mode=True)
    slopes = torch.autograd.grad(attend(*qkv).square().sum(), qkv)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    for ours, theirs in zip(slopes, torch.autograd.grad(attend(*exact).square().sum(), exact), strict=True):
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "llama 4", "muse-glimmer"])
def test_a_model_learns_through_the_same_functions(name: str) -> None:
    """The slope of a loss along a random direction of all weights is what a small step in that direction changes."""
    cfg, leaves = CONFIGS[name]
    documents = [[token % 280 for token in prompt(cfg, length, seed=length)] for length in (3, 9)]
    tensors = Tensors(CPU, torch.float64)
    random = torch.Generator().manual_seed(1)
    parameters, directions = {}, {}
    for leaf_name, leaf in leaves.items():
        assert isinstance(leaf, Dense)
        parameters[leaf_name] = tensors.get(leaf).clone().requires_grad_()
        directions[leaf_name] = torch.randn(leaf.shape, dtype=torch.float64, generator=random)

    def loss(step: float) -> Tensor:
        for leaf_name, leaf in leaves.items():
            assert isinstance(leaf, Dense)
            tensors.bind(leaf, parameters[leaf_name] + step * directions[leaf_name])
        return run(cfg, leaves, documents, tensors).logsumexp(dim=-1).sum()

    used = {leaf_name: each for leaf_name, each in parameters.items() if not leaf_name.startswith("vision")}
    slopes = torch.autograd.grad(loss(0.0), list(used.values()), allow_unused=True)
    slope = sum(float((each * directions[leaf_name]).sum()) for leaf_name, each in zip(used, slopes, strict=True) if each is not None)
    missing = [leaf_name for leaf_name, each in zip(used, slopes, strict=True) if each is None]
    assert not missing, missing
    with torch.no_grad():
        changed = float(loss(1e-6) - loss(-1e-6)) / 2e-6
    assert abs(slope - changed) < 1e-5 * max(1.0, abs(slope))


@pytest.mark.parametrize("added", ["nothing", "a vector", "rows"])
def test_gradients_through_a_quantised_matrix_are_the_slopes_and_it_is_not_kept_decoded(added: str) -> None:
    leaf = random_leaves(SMALL, dtype=dtypes.Q4_K)["layers.0.ffn.down"]
    tensors = Tensors(CPU, torch.float64)
    random = torch.Generator().manual_seed(2)
    x = torch.randn((5, leaf.shape[1]), dtype=torch.float64, generator=random, requires_grad=True)
    shape = {"nothing": None, "a vector": (leaf.shape[0],), "rows": (5, leaf.shape[0])}[added]
    more = None if shape is None else torch.randn(shape, dtype=torch.float64, generator=random, requires_grad=True)
    inputs = [each for each in (x, more) if each is not None]
    ours = product(tensors, x, leaf, more, 0.5)
    matrix = tensors.get(leaf)
    theirs = x @ matrix.T + (0.5 * more if more is not None else 0)
    assert torch.allclose(ours, theirs, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(theirs.square().sum(), inputs), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-10)
    assert tensors.decoded_bytes == 0


def test_an_adapter_over_a_quantised_matrix_learns_and_its_base_does_not() -> None:
    base = random_leaves(SMALL, dtype=dtypes.Q8_0)["layers.0.ffn.up"]
    random = np.random.default_rng(4)
    down, up = dense_f32(random.standard_normal((4, base.shape[1]))), dense_f32(random.standard_normal((base.shape[0], 4)))
    tensors = Tensors(CPU, torch.float64)
    learned = [torch.nn.Parameter(tensors.get(leaf).clone()) for leaf in (down, up)]
    tensors.bind(down, learned[0])
    tensors.bind(up, learned[1])
    x = torch.from_numpy(random.standard_normal((3, base.shape[1])))
    y = TorchOps(tensors).linear(x, Adapted(base, down, up, 2.0))
    slopes = torch.autograd.grad(y.sum(), learned)
    matrix_sum = learned[1].sum(dim=0)
    assert torch.allclose(slopes[0], 2.0 * matrix_sum[:, None] * x.sum(dim=0), atol=1e-9)
    assert slopes[1].shape == up.shape and bool(slopes[1].abs().max() > 0)
