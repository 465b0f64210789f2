"""The native kernels of rows that learn, through autograd: norms, rotations, gates and the softmax of the vocabulary, in 32 and 16 bits
against the plain operations in float64, within twice the error of these in the same type; the same bits for any threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd import _core
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.tensors import Tensors
from herd.training.student import cross_entropy, fused, native_rows
from herd.training.student.native_rows import is_native

pytestmark = pytest.mark.skipif(_core.available_isas()[-1] == "portable", reason="without vector instructions torch's operations are used")

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
ROWS = [1, 63, 64, 65, 130]
INF, NAN = float("inf"), float("nan")

Way = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _threads_again() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def found(way: Way, inputs: Sequence[Tensor], *settings: Any) -> list[Tensor]:
    """The result, and what comes back to each of the inputs."""
    learned = [x.detach().requires_grad_() for x in inputs]
    y = way(*learned, *settings)
    dy = drawn(*y.shape, seed=9, dtype=torch.bfloat16).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, learned, dy)]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def is_within_budget(ours: Way, plain: Way, inputs: Sequence[Tensor], *settings: Any) -> None:
    exact = found(plain, [x.double() for x in inputs], *settings)
    for index, (mine, theirs, truth) in enumerate(zip(found(ours, inputs, *settings), found(plain, inputs, *settings), exact, strict=True)):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, index
        assert (mine.double() - truth).abs().max() <= 2 * (theirs.double() - truth).abs().max(), index


def norm(x: Tensor, *weight_and: Any) -> Tensor:
    """By kernels: x, perhaps the scales, whether they are centred."""
    *weight, centred = weight_and
    y: Tensor = fused._RmsNorm.apply(x, weight[0] if weight else None, EPS, centred)  # type: ignore[no-untyped-call]
    return y


def plain_norm(x: Tensor, *weight_and: Any) -> Tensor:
    """As `TorchOps`: in 32 bits or more, rounded at the end."""
    *weight, centred = weight_and
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    if weight:
        y = y * (1 + weight[0] if centred else weight[0])
    return y.to(x.dtype)


def rotate(x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
    y: Tensor = fused._Rotate.apply(x_TNH, rotary_TH)  # type: ignore[no-untyped-call]
    return y


def plain_rotate(x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
    return TorchOps(Tensors(CPU, x_TNH.dtype)).rotate(x_TNH, rotary_TH.to(torch.promote_types(x_TNH.dtype, torch.float32)))


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    y: Tensor = fused._SiluGate.apply(gate, up)  # type: ignore[no-untyped-call]
    return y


def plain_silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return TorchOps(Tensors(CPU, gate.dtype)).silu_gate(gate, up)


def angles(tokens: int, half: int) -> Tensor:
    turns = drawn(tokens, half, seed=5, dtype=torch.float64)
    return torch.stack([torch.cos(turns), torch.sin(turns)]).float()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [64, 257])
@pytest.mark.parametrize("scales", ["none", "plain", "centred"])
def test_norms_and_what_comes_back(dtype: torch.dtype, rows: int, width: int, scales: str) -> None:
    x = drawn(rows, width, dtype=dtype)
    # In 32 bits a norm's scales, whatever its rows are.
    inputs = [x] if scales == "none" else [x, drawn(width, seed=1)]
    ours, plain, exact = (
        found(norm, inputs, scales == "centred"),
        found(plain_norm, inputs, scales == "centred"),
        found(plain_norm, [each.double() for each in inputs], scales == "centred"),
    )
    for index, (mine, theirs, truth) in enumerate(zip(ours, plain, exact, strict=True)):
        error, allowed = ((each.double() - truth).abs().max().item() for each in (mine, theirs))
        # One row may be exact by luck: half a unit of the largest number is no error.
        unit = torch.finfo(mine.dtype).eps / 2 * truth.abs().max().item()
        assert error <= max(2 * allowed, unit), index


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(50, 3, 64), (50, 1, 2), (50, 2, 300), (3, 9, 128)])
def test_rotations_and_what_comes_back(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rotary = angles(shape[0], shape[2] // 2)
    x = drawn(*shape, dtype=dtype)
    is_within_budget(lambda x: rotate(x, rotary), lambda x: plain_rotate(x, rotary), [x])
    turned = rotate(x.float(), rotary)
    assert torch.allclose(native_rows.rotate(turned, rotary, back=True), x.float(), atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(130, 1), (64, 255), (64, 257), (7, 1536), (3, 5, 64)])
def test_gates_and_what_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    is_within_budget(silu_gate, plain_silu_gate, [drawn(*shape, dtype=dtype) * 4, drawn(*shape, seed=1, dtype=dtype)])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_huge_gates_are_open_or_shut_and_what_is_not_a_number_stays(dtype: torch.dtype) -> None:
    gate = torch.tensor([[100.0, 1e4, 1e30, -200.0, -1e4, -1e30, NAN, 0.0]], dtype=dtype)
    up = drawn(1, 8, dtype=dtype)
    ours, plain = found(silu_gate, [gate, up]), found(plain_silu_gate, [gate, up])
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine[0, 6].isnan()
        rest = [0, 1, 2, 3, 4, 5, 7]
        # By one unit, where the last digit was rounded the other way.
        assert torch.allclose(mine[0, rest], theirs[0, rest], rtol=torch.finfo(dtype).eps, atol=1e-30)


def logprobs(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    chosen = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    return -chosen + z_loss * torch.logsumexp(logits, dim=-1).square()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(130, 2), (70, 255), (70, 256), (70, 257), (3, 49152)])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("forbids", [False, True])
def test_softmaxes_and_their_slopes(dtype: torch.dtype, rows: int, width: int, z_loss: float, forbids: bool) -> None:
    logits = drawn(rows, width, dtype=dtype) * 3
    targets = torch.arange(rows) * 7919 % width
    if forbids:
        logits[1:, ::3] = -INF
        targets = torch.where(targets % 3 == 0, targets + 1, targets).clamp(max=width - 1)
        targets[0] = 0
        targets[targets % 3 == 0] = 1
    slopes = logits.clone()
    found_logprobs, lse = native_rows.softmax(slopes, targets, z_loss, with_slopes=True)
    untouched = logits.clone()
    again, _ = native_rows.softmax(untouched, targets, z_loss, with_slopes=False)
    assert torch.equal(untouched, logits) and torch.equal(again, found_logprobs)
    # torch's own softmax in the type of the logits: slopes are stored in it, sums are in 32 bits.
    exact, plain = (each.requires_grad_() for each in (logits.double(), logits.float()))
    truth, theirs = (torch.autograd.grad(logprobs(each, targets, z_loss).sum(), each)[0] for each in (exact, plain))
    for mine, other, true in (
        (slopes, theirs.to(dtype), truth),
        (lse, torch.logsumexp(plain, dim=-1), torch.logsumexp(exact, dim=-1)),
        (found_logprobs, -logprobs(plain, targets, 0.0), -logprobs(exact, targets, 0.0)),
    ):
        assert (mine.double() - true).abs().max() <= 2 * (other.double() - true).abs().max()


def test_a_vocabulary_of_one_word_is_certain() -> None:
    for dtype in TYPES:
        logits = drawn(9, 1, dtype=dtype)
        before = logits.clone()
        found_logprobs, lse = native_rows.softmax(logits, torch.zeros(9, dtype=torch.int64), 0.0, with_slopes=True)
        assert not found_logprobs.any() and not logits.any() and torch.equal(lse, before[:, 0].float())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("learned", ["hidden", "head", "both"])
def test_the_loss_of_a_vocabulary_is_as_near_to_the_truth_as_torchs(dtype: torch.dtype, z_loss: float, learned: str) -> None:
    """Through `weighted_nll` and `token_logprobs`, in chunks."""
    hidden, head = drawn(90, 64, dtype=dtype) / 4, drawn(700, 64, seed=1, dtype=dtype)
    targets, weights = torch.arange(90) * 97 % 700, drawn(90, seed=2).abs().double()
    assert is_native(hidden)

    def plain(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        logits = hidden @ head.T
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (weights * logprobs(wide, targets, z_loss)).sum(), -logprobs(wide, targets, 0.0)

    def ours(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        total, _ = cross_entropy.weighted_nll(hidden, head, targets, weights, z_loss, chunk_rows=32)
        return total, cross_entropy.token_logprobs(hidden, head, targets, chunk_rows=32)

    def slopes(way: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        values = [x.detach().to(dtype).requires_grad_(learned in (name, "both")) for name, x in (("hidden", hidden), ("head", head))]
        total, rows = way(*values)
        used = [x for x in values if x.requires_grad]
        of_rows = torch.autograd.grad((weights * rows.exp()).sum(), used, retain_graph=True)
        return [total.detach(), rows.detach(), *torch.autograd.grad(total, used), *of_rows]

    for index, (mine, other, true) in enumerate(zip(slopes(ours, dtype), slopes(plain, dtype), slopes(plain, torch.float64), strict=True)):
        error, allowed = ((each.double() - true).abs().max().item() for each in (mine, other))
        # The total is one number, which torch may have exactly by luck: a unit of it is no error.
        unit = torch.finfo(torch.float32).eps * true.abs().item() if index == 0 else 0.0
        assert error <= max(2 * allowed, unit), index


def every_operation(dtype: torch.dtype) -> list[Tensor]:
    """Of enough rows that several threads have work."""
    x, up, weight = drawn(700, 576, dtype=dtype), drawn(700, 576, seed=1, dtype=dtype), drawn(576, seed=2)
    logits = drawn(40, 3000, dtype=dtype)
    turned = found(rotate, [x.unflatten(1, (9, 64)), angles(700, 32)][:1], angles(700, 32))
    some = native_rows.softmax(logits, torch.arange(40), 1e-2, with_slopes=True)
    return [*found(norm, [x, weight], False), *turned, *found(silu_gate, [x, up]), *some, logits]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    alone = every_operation(dtype)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert same(every_operation(dtype), alone), threads


def test_several_python_threads_may_work_at_once() -> None:
    torch.set_num_threads(2)
    expected = every_operation(torch.bfloat16)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(made, expected) for made in pool.map(lambda _: every_operation(torch.bfloat16), range(12)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bits_do_not_depend_on_how_tensors_lie(dtype: torch.dtype) -> None:
    """Columns of a wide tensor, and tensors that are turned: copied where it must be."""
    wide = drawn(70, 400, dtype=dtype)
    x, up = wide[:, 3:131], wide[:, 200:328]
    for view in (lambda each: each, lambda each: each.T.contiguous().T):
        assert same(found(norm, [view(x)], False), found(norm, [x.contiguous()], False))
        assert same(found(silu_gate, [view(x), view(up)]), found(silu_gate, [x.contiguous(), up.contiguous()]))
    heads, rotary = x.unflatten(1, (2, 64)), angles(70, 32)
    for each in (heads, heads.transpose(0, 1).contiguous().transpose(0, 1), wide[:, :256].unflatten(1, (2, 128))[:, :, :64]):
        assert same(found(rotate, [each], rotary), found(rotate, [each.contiguous()], rotary))


def test_an_expanded_gradient_comes_back_too() -> None:
    """What `sum()` gives back is one number for all."""
    x, up, rotary = drawn(20, 128), drawn(20, 128, seed=1), angles(20, 32)
    ways: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (lambda x: norm(x, False), lambda x: plain_norm(x, False)),
        (lambda x: silu_gate(x, up), lambda x: plain_silu_gate(x, up)),
        (lambda x: rotate(x.unflatten(1, (2, 64)), rotary), lambda x: plain_rotate(x.unflatten(1, (2, 64)), rotary)),
    ]
    for ours, plain in ways:
        mine, theirs = (torch.autograd.grad(way(each).sum(), each)[0] for way in (ours, plain) for each in [x.clone().requires_grad_()])
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_no_rows_are_no_work() -> None:
    for dtype in TYPES:
        none = torch.empty(0, 64, dtype=dtype)
        assert all(each.shape == (0, 64) for each in found(norm, [none], False))
        assert all(each.shape == (0, 64) for each in found(silu_gate, [none, none]))
        weight = found(norm, [none, torch.ones(64)], False)[2]
        assert weight.shape == (64,) and not weight.any()


def rows_of(threads: int = 1) -> _core.LearnRows:
    return _core.LearnRows(_core.available_isas()[-1], threads)


X, FLOATS, TARGETS = torch.zeros(4, 8), torch.zeros(4), torch.zeros(4, dtype=torch.int64)
REFUSED: list[tuple[Callable[[_core.LearnRows], None], str]] = [
    (lambda of: of.silu_gate(X.double(), X, X), "gate is float64; it must be float32 or bfloat16"),
    (lambda of: of.silu_gate(X[0], X, X), "gate has 1 axes; it must have 2"),
    (lambda of: of.silu_gate(X.T.contiguous().T, X, X), "gate must have the numbers of a row side by side"),
    (lambda of: of.silu_gate(X, X[:3], X), r"\[4, 8\] beside \[3, 8\]"),
    (lambda of: of.silu_gate(X, X.bfloat16(), X), r"\[4, 8\] beside \[4, 8\], or of another type"),
    (lambda of: of.silu_gate_backward(X, X, X, X, X[:, :4]), r"\[4, 8\] beside \[4, 4\]"),
    (lambda of: of.rms_norm(X, torch.ones(7), EPS, X, FLOATS), "scales has 7 of what must be 8"),
    (lambda of: of.rms_norm(X, None, EPS, X, torch.zeros(5)), "factors has 5 of what must be 4"),
    (lambda of: of.rms_norm_backward(X, None, FLOATS, X, X, torch.zeros(2, 8)), "for_scales has 2 of what must be 1"),
    (lambda of: of.rotate(X, 3, torch.zeros(4, 1), torch.zeros(4, 1), False, X), "x must have heads of an even width"),
    (lambda of: of.rotate(X, 0, torch.zeros(4, 1), torch.zeros(4, 1), False, X), "x must have heads of an even width"),
    (lambda of: of.rotate(X, 2, torch.zeros(4, 2), torch.zeros(4, 3), False, X), "cosines and sines has 3 of what must be 2"),
    (lambda of: of.softmax(X, TARGETS[:3], 0.0, False, FLOATS, FLOATS.clone()), "has 3 of what must be 4"),
    (lambda of: of.softmax(X, TARGETS + 8, 0.0, False, FLOATS, FLOATS.clone()), "a target is not in the vocabulary"),
    (lambda of: of.softmax(X, TARGETS - 1, 0.0, False, FLOATS, FLOATS.clone()), "a target is not in the vocabulary"),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_wrong_tensors_are_refused(index: int) -> None:
    call, message = REFUSED[index]
    with pytest.raises(ValueError, match=message):
        call(rows_of())


def test_threads_are_from_1_to_1024() -> None:
    for threads in (0, -1, 1025):
        with pytest.raises(ValueError, match=f"threads is {threads}; it must be from 1 to 1024"):
            rows_of(threads)
