"""The native kernels of attention that learns, through autograd: against torch in float64, within twice the error of torch's own ways in
the same type; the same bits for any threads; and what the binding refuses."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd import _core
from herd.backends.torch.documents import Documents
from herd.models.ops import Chunks, Sliding, Window
from herd.training.student import native_attention
from herd.training.student.attention import Packed, _Blocked
from herd.training.student.native_attention import attends_natively

pytestmark = pytest.mark.skipif(_core.available_isas()[-1] == "portable", reason="without vector instructions torch's products are used")

LENGTHS = (1, 49, 200, 16, 48, 97)
WINDOWS: list[Window | None] = [None, Chunks(33), Sliding(20)]
TYPES = [torch.float32, torch.bfloat16]
SCALE = 0.3

Way = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _threads_again() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv_of(dtype: torch.dtype, heads: int, kv_heads: int, width: int, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Columns of one wide tensor each, as a product of joined matrices gives them."""
    rows = drawn(sum(lengths), (heads + 2 * kv_heads) * width, seed=width, dtype=dtype)
    parts = rows.split([heads * width, kv_heads * width, kv_heads * width], dim=1)
    return [part.unflatten(1, (-1, width)) for part in parts]


def packed(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None) -> Tensor:
    return Packed(lengths).attend(q, k, v, scale, window)


def blocked(*of: Any) -> Tensor:
    y: Tensor = _Blocked.apply(*of)  # type: ignore[no-untyped-call]
    return y


def documents(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None) -> Tensor:
    return Documents(lengths).attend(q, k, v, scale, window)


def found(way: Way, qkv: Sequence[Tensor], window: Window | None = None, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """y and what comes back to q, k and v."""
    learned = [x.detach().requires_grad_() for x in qkv]
    y = way(*learned, lengths, SCALE, window)
    dy = drawn(*y.shape, seed=3, dtype=torch.bfloat16).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, learned, dy)]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(3, 1, 16), (2, 2, 64), (6, 2, 64), (4, 4, 80), (3, 1, 128)])
def test_values_and_gradients_are_as_near_to_the_truth_as_torchs(
    dtype: torch.dtype, window: Window | None, heads: int, kv_heads: int, width: int
) -> None:
    qkv = qkv_of(dtype, heads, kv_heads, width)
    assert attends_natively(qkv[0]) and not qkv[0].is_contiguous()
    exact = found(documents, [x.double() for x in qkv], window)
    ours = found(packed, qkv, window)
    # In 16 bits the plain way rounds what it stores, as torch's operations do; blocks of 32 bits round at their end only, and it is the
    # instructions of the processor that ask for weights in 16 bits.
    plain = found(documents if dtype is torch.bfloat16 else blocked, qkv, window)
    for name, mine, theirs, truth in zip(("y", "dq", "dk", "dv"), ours, plain, exact, strict=True):
        error, allowed = ((x.double() - truth).abs().max().item() for x in (mine, theirs))
        assert error <= 2 * allowed, name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, window: Window | None) -> None:
    qkv = qkv_of(dtype, 6, 2, 64)
    torch.set_num_threads(1)
    alone = found(packed, qkv, window)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert same(found(packed, qkv, window), alone), threads


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_documents_have_the_bits_that_they_have_alone(dtype: torch.dtype) -> None:
    q, k, v = qkv_of(dtype, 4, 2, 32)
    together = found(packed, (q, k, v))
    start = 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        y = packed(q[rows], k[rows], v[rows], (length,), SCALE, None)
        assert torch.equal(y, together[0][rows])
        start += length


def test_bits_do_not_depend_on_how_tensors_lie() -> None:
    """Columns of a wide tensor, tensors of their own, heads that are not side by side, and an expanded one: copied where it must be."""
    qkv = qkv_of(torch.float32, 4, 2, 32)
    whole = [x.contiguous() for x in qkv]
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in qkv]
    assert turned[0].stride() != whole[0].stride()
    expected = found(packed, qkv)
    assert same(found(packed, whole), expected) and same(found(packed, turned), expected)
    one = whole[1][:, :1]
    shared = [whole[0], one.expand(-1, 2, -1), one.expand(-1, 2, -1)]
    assert same(found(packed, shared), found(packed, [x.contiguous() for x in shared]))


def test_one_kv_head_may_have_any_stride() -> None:
    k = drawn(10, 16, 1, seed=1).transpose(1, 2)
    assert k.stride() == (16, 1, 1)
    q = drawn(10, 2, 16, seed=2)
    assert torch.equal(packed(q, k, k, (10,), SCALE, None), packed(q, k.clone(), k.clone(), (10,), SCALE, None))


def test_an_expanded_gradient_comes_back_too() -> None:
    """What `sum()` gives back is one number for all."""
    learned = [x.detach().requires_grad_() for x in qkv_of(torch.float32, 4, 2, 32)]
    dq = [
        torch.autograd.grad(y, learned)
        for y in (packed(*learned, LENGTHS, SCALE, None).sum(), blocked(*learned, LENGTHS, SCALE, None).sum())
    ]
    for ours, theirs in zip(*dq, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_only_what_learns_is_given_a_gradient() -> None:
    q, k, v = (x.detach().contiguous() for x in qkv_of(torch.float32, 2, 1, 16))
    k.requires_grad_()
    y = packed(q, k, v, LENGTHS, SCALE, None)
    y.square().sum().backward()
    assert k.grad is not None and k.grad.shape == k.shape and q.grad is None and v.grad is None
    assert not packed(q, k.detach(), v, LENGTHS, SCALE, None).requires_grad


def test_other_widths_and_types_go_another_way() -> None:
    assert not attends_natively(drawn(3, 1, 24, seed=0)) and not attends_natively(drawn(3, 1, 1040, seed=0))
    assert not attends_natively(drawn(3, 1, 16, seed=0).double()) and not attends_natively(drawn(3, 1, 16, seed=0).half())
    assert attends_natively(drawn(3, 1, 1024, seed=0))
    for width, dtype in ((24, torch.float32), (16, torch.float64), (16, torch.float16)):
        qkv = qkv_of(dtype, 2, 1, width, (5, 3))
        assert same(found(packed, qkv, None, (5, 3)), found(blocked, qkv, None, (5, 3)))


@pytest.mark.parametrize("window", [None, Sliding(700)], ids=str)
@pytest.mark.parametrize(("length", "heads", "kv_heads", "width"), [(1500, 2, 1, 64), (100, 2, 2, 256), (50, 2, 1, 1024)])
def test_long_documents_and_wide_heads_are_summed_as_well_as_torch_sums(
    length: int, heads: int, kv_heads: int, width: int, window: Window | None
) -> None:
    """Thousands of products in one chain of additions would lose digits: sums of blocks are added to each other."""
    lengths = (length,)
    qkv = qkv_of(torch.float32, heads, kv_heads, width, lengths)
    exact = found(documents, [x.double() for x in qkv], window, lengths)
    ours, plain = (found(way, qkv, window, lengths) for way in (packed, blocked))
    for name, mine, theirs, truth in zip(("y", "dq", "dk", "dv"), ours, plain, exact, strict=True):
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max(), name


def test_an_empty_batch_is_refused_as_torchs_way_refuses_it() -> None:
    empty = [torch.empty(0, heads, 16) for heads in (2, 1, 1)]
    with pytest.raises(ValueError, match="lengths is empty; there must be a document"):
        packed(*empty, (), SCALE, None)


def test_several_python_threads_may_attend_at_once() -> None:
    torch.set_num_threads(2)
    all_qkv = [qkv_of(dtype, 6, 2, 64) for dtype in TYPES]
    expected = [found(packed, qkv) for qkv in all_qkv]
    with ThreadPoolExecutor(4) as pool:
        for index, made in enumerate(pool.map(lambda call: found(packed, all_qkv[call % 2]), range(24))):
            assert same(made, expected[index % 2]), index


def _ends_in_a_child(work: Callable[[], None]) -> bool:
    """Whether a forked process ends well in a minute."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_attends_by_one_thread() -> None:
    """As torch's own operations: the threads of OpenMP do not follow a fork, and work for several would wait for them for ever. Who forks
    sets one thread first, as torch's DataLoader does in each of its workers."""
    torch.set_num_threads(2)
    qkv = qkv_of(torch.float32, 6, 2, 64)
    expected = found(packed, qkv)

    def work() -> None:
        torch.set_num_threads(1)
        if not same(found(packed, qkv), expected):
            raise AssertionError("other bits in a child")

    assert _ends_in_a_child(work)


def made(
    lengths: Sequence[int] = (5, 3), window: str = "past", tokens: int = 0, scale: float = 1.0, threads: int = 1
) -> _core.DocumentAttention:
    return _core.DocumentAttention(_core.available_isas()[-1], threads, lengths, window, tokens, scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "lengths is empty; there must be a document"),
        ({"lengths": (5, 0)}, "document 1 has 0 tokens; it must have one at least"),
        ({"lengths": (-1,)}, "document 0 has -1 tokens; it must have one at least"),
        ({"lengths": (2**62, 2**62)}, f"document 1 has {2**62} tokens"),
        ({"window": "chunks", "tokens": 0}, "a window has 0 tokens; it must have one at least"),
        ({"window": "sliding", "tokens": -3}, "a window has -3 tokens; it must have one at least"),
        ({"window": "door"}, 'window "door" is unknown; there are past, chunks, sliding'),
        ({"scale": 0.0}, "scale is 0.000000; it must be positive and finite"),
        ({"scale": -1.0}, "scale is -1.000000; it must be positive and finite"),
        ({"scale": float("nan")}, "scale is -?nan; it must be positive and finite"),
        ({"scale": float("inf")}, "scale is inf; it must be positive and finite"),
        ({"threads": 0}, "threads is 0; it must be from 1 to 1024"),
    ],
    ids=str,
)
def test_an_attention_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="abacus"):
        _core.DocumentAttention("abacus", 1, (5,), "past", 0, 1.0)


T, N, K, H = 8, 4, 2, 32


def arguments() -> dict[str, Any]:
    """What `backward` is called with."""
    q, k = torch.zeros(T, N, H), torch.zeros(T, K, H)
    some = {"q": q, "k": k, "v": k.clone(), "tops": torch.zeros(N, T), "dy": q.clone(), "dq": q.clone(), "dk": k.clone(), "dv": k.clone()}
    return some | {"workspace": torch.empty(made().workspace_bytes(q, k, True), dtype=torch.uint8)}


REFUSED: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("q", lambda q: q.double(), "q is float64; it must be float32 or bfloat16"),
    ("q", lambda q: q.half(), "q is float16; it must be float32 or bfloat16"),
    ("q", lambda q: q.long(), "q is int64; it must be float32 or bfloat16"),
    ("q", lambda q: q.flatten(1), r"q has shape \[8, 128\]; it must have 3 axes: tokens, heads and their width"),
    (
        "q",
        lambda q: q.transpose(0, 1).contiguous().transpose(0, 1),
        r"q has strides \[32, 256, 1\]; the heads of a token must lie side by side: \[any, 32, 1\]",
    ),
    (
        "q",
        lambda q: q[:, :3],
        r"k is float32 \[8, 2, 32\]; there must be a multiple of its heads in the queries: q is float32 \[8, 3, 32\]",
    ),
    (
        "q",
        lambda q: q[:7],
        r"k is float32 \[8, 2, 32\]; it must have the type, the tokens and the width of the queries: q is float32 \[7, 4, 32\]",
    ),
    ("q", lambda q: q.bfloat16(), r"k is float32 .* of the queries: q is bfloat16"),
    ("k", lambda k: k[:, :0], r"v is float32 \[8, 2, 32\]; it must be like this: k is float32 \[8, 0, 32\]"),
    ("v", lambda v: v[:, :1], r"v is float32 \[8, 1, 32\]; it must be like this: k is float32 \[8, 2, 32\]"),
    ("v", lambda v: v.bfloat16(), r"v is bfloat16 \[8, 2, 32\]; it must be like this: k is float32 \[8, 2, 32\]"),
    ("v", lambda v: v[:, :1].expand(-1, 2, -1), r"v has strides \[64, 0, 1\]"),
    (
        "tops",
        lambda tops: tops[:, :7].contiguous(),
        r"tops has shape \[4, 7\]; it must be \[heads, tokens\], and q is float32 \[8, 4, 32\]",
    ),
    ("dy", lambda dy: dy[:, :2], r"dy is float32 \[8, 2, 32\]; it must be like this: q is float32 \[8, 4, 32\]"),
    ("dq", lambda dq: dq.repeat(1, 2, 1)[:, :4], "dq is float32 .*; it must have no gaps: its rows are 256 apart, and 128 long"),
    ("dk", lambda dk: dk.bfloat16(), r"dk is bfloat16 \[8, 2, 32\]; it must be like this: k is float32 \[8, 2, 32\]"),
    ("dv", lambda dv: dv[:7], r"dv is float32 \[7, 2, 32\]; it must be like this: k is float32 \[8, 2, 32\]"),
    ("workspace", lambda memory: memory[:-1], r"workspace has \d+ bytes; it must have \d+"),
    ("workspace", lambda memory: torch.cat([memory, memory])[1:], "workspace must begin at a multiple of 16 bytes"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[f"{index}-{name}" for index, (name, _, _) in enumerate(REFUSED)])
def test_wrong_tensors_are_refused_with_what_was_found_and_expected(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    given = arguments()
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=message):
        made().backward(**given)
    if name in ("q", "k", "v", "tops"):
        with pytest.raises(ValueError, match=message):
            made().forward(given["q"], given["k"], given["v"], given["dq"], given["tops"], given["workspace"])


def test_y_must_be_like_q_and_the_workspace_of_the_forward_is_measured_too() -> None:
    given = arguments()
    q, k, v, tops = (given[name] for name in ("q", "k", "v", "tops"))
    with pytest.raises(ValueError, match=r"y is float32 \[8, 2, 32\]; it must be like this: q is float32 \[8, 4, 32\]"):
        made().forward(q, k, v, k.clone(), tops, given["workspace"])
    needed = made().workspace_bytes(q, k, False)
    with pytest.raises(ValueError, match=f"workspace has {needed - 1} bytes; it must have {needed}"):
        made().forward(q, k, v, q.clone(), tops, torch.empty(needed, dtype=torch.uint8)[:-1])


def test_a_width_that_is_no_multiple_of_16_and_documents_of_another_sum_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q is float32 \[8, 4, 24\]; the width of a head must be a multiple of 16, and at most 1024"):
        made().workspace_bytes(torch.zeros(T, N, 24), torch.zeros(T, K, 24), False)
    with pytest.raises(ValueError, match=r"q is float32 \[8, 4, 32\]; the documents have 9 tokens together"):
        made((5, 4)).workspace_bytes(torch.zeros(T, N, H), torch.zeros(T, K, H), False)


def test_the_binding_reads_the_numbers_of_a_tensor_that_asks_for_gradients() -> None:
    """It knows no gradients: autograd is `native_attention`'s."""
    q, k, v = (x.detach().contiguous() for x in qkv_of(torch.float32, 2, 1, 16, (5, 3)))
    tops, memory = torch.empty(2, 8), torch.empty(made().workspace_bytes(q, k, False), dtype=torch.uint8)
    y, same_y = torch.empty_like(q), torch.empty_like(q)
    made().forward(q, k, v, y, tops, memory)
    made().forward(q.requires_grad_(), k, v, same_y, tops, memory)
    assert torch.equal(y, same_y) and not same_y.requires_grad


def test_what_was_kept_may_not_be_changed_before_the_way_back() -> None:
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv_of(torch.float32, 2, 1, 16))
    y = native_attention.native_attention(q, k, v, LENGTHS, SCALE, None)
    with torch.no_grad():
        k.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
