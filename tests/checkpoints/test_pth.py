"""The reader of PyTorch's files: it reads what PyTorch wrote, runs nothing, and refuses everything else by name."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest

from herd.checkpoints.pth import PthFile, read_pth
from herd.errors import FileProblem
from herd.files import MappedFile
from pth_files import number, program, pth, state, storage, tensor, text

RUN: list[str] = []


def trap(*arguments: object) -> None:
    RUN.append(str(arguments))


def opened(data: bytes) -> PthFile:
    return read_pth(MappedFile.of_bytes(data, "model.pth"))


def refusal(data: bytes, *, within_s: float = 0.1) -> str:
    """The message with which the file is refused; it must come fast, and be printable."""
    start = time.process_time()
    with pytest.raises(FileProblem) as caught:
        opened(data)
    assert time.process_time() - start < within_s
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_what_pytorch_writes_is_read_in_place() -> None:
    torch = pytest.importorskip("torch")
    shared = torch.randn(4, 6).bfloat16()
    values = {
        "one": shared,
        "two": shared,
        "part": shared[1:3],
        "f8": torch.randn(3, 4).to(torch.float8_e4m3fn),
        "small": torch.ones(3, dtype=torch.int8),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "scalar": torch.tensor(2.0),
        "x._extra_state": io.BytesIO(b"abc"),
        "y._extra_state": None,
    }
    out = io.BytesIO()
    torch.save(values, out)
    file = opened(out.getvalue())
    assert set(file.tensors) == {name for name in values if "extra" not in name}
    for name, entry in file.tensors.items():
        expected = values[name].detach()
        stored = np.frombuffer(file.file.view, np.uint8, entry.num_bytes, entry.offset)
        assert entry.shape == tuple(expected.shape)
        assert stored.tobytes() == expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), name
    assert file.tensors["one"].offset == file.tensors["two"].offset
    assert file.damaged() == []


def test_the_state_of_a_module_is_read() -> None:
    torch = pytest.importorskip("torch")
    out = io.BytesIO()
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict(), out)
    assert set(opened(out.getvalue()).tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}


class _Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"cos\nsystem\n(" + text("touch /tmp/owned") + b"tR", "os.system"),
        (b"cposix\nsystem\n", "posix.system"),
        (b"cbuiltins\neval\n(" + text("1") + b"tR", "builtins.eval"),
        (b"c__builtin__\nexec\n", "__builtin__.exec"),
        (b"cbuiltins\ngetattr\n", "builtins.getattr"),
        (b"csubprocess\nPopen\n", "subprocess.Popen"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"ctorch\nserialization.os.system\n", "torch.serialization.os.system"),
        (b"ctorch.storage\n_load_from_bytes\n", "torch.storage._load_from_bytes"),
        (b"ctorch.hub\nload\n", "torch.hub.load"),
        (b"ctorch.jit._script\nunpackage_script_module\n", "torch.jit._script.unpackage_script_module"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "numpy.core.multiarray._reconstruct"),
        (b"c" + b"a" * 200 + b"\nb\n", "no name of a class or function"),
        (b"c\xff\xfe\nb\n", "no name of a class or function"),
        (b"c\x1b[2J\nb\n", "asks for \\x1b[2J.b"),
    ],
)  # fmt: skip
def test_a_name_that_weights_do_not_need_is_refused_by_name(body: bytes, named: str) -> None:
    message = refusal(pth(state(a=tensor(), b=body)))
    assert named in message and "made to run code; herd runs none" in message


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_of_a_real_malicious_pickle_runs(protocol: int) -> None:
    RUN.clear()
    data = pickle.dumps({"weight": _Calls(trap, "ran")}, protocol=protocol)
    message = refusal(pth(data))
    assert RUN == []
    assert "protocol 2" in message or "test_pth.trap" in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(shape=(3, 3)), "make no tensor"),
        (tensor(shape=(2, 3), offset=1), "make no tensor"),
        (tensor(shape=(2, 3), offset=-1), "make no tensor"),
        (tensor(shape=(-2, -3)), "make no tensor"),
        (tensor(shape=(2, 3), strides=(1, 2)), "make no tensor"),
        (tensor(shape=(2, 3), strides=(0, 0)), "make no tensor"),
        (tensor(shape=(2, 3), strides=(3,)), "make no tensor"),
        (tensor(shape=(2**62, 4), strides=(4, 1)), "make no tensor"),
        (tensor(shape=(2**31, 2**31, 4), strides=(2**33, 4, 1)), "make no tensor"),
        (tensor(shape=(1,) * 9, strides=(1,) * 9), "make no tensor"),
        (tensor(rest=b"K\x01}"), "make no tensor"),
        (tensor(rest=b"\x89K\x01"), "make no tensor"),
        (tensor(rest=b"\x89"), "make no tensor"),
        (tensor(at=storage(count=7)), "refers to a tuple outside"),
        (tensor(at=storage(count=-6)), "refers to a tuple outside"),
        (tensor(at=storage(key="1")), "refers to a tuple outside"),
        (tensor(at=storage(key="../data.pkl")), "refers to a tuple outside"),
        (tensor(at=storage(kind="DoubleStorage")), "refers to a tuple outside"),
        (tensor(at=storage(kind="QInt8Storage")), "asks for torch.QInt8Storage"),
        (tensor(at=number(3)), "make no tensor"),
        (tensor(at=b"]"), "make no tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n" + text("arguments") + b"R", "with 'arguments'"),
        (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage"),
        (text("f") + b")R", "calls 'f'"),
        (b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88tR", "make no tensor"),
        (b"ccollections\nOrderedDict\n(]tR", "make no tensor"),
        (text("storage") + b"Q", "refers to 'storage'"),
        (b"(" + text("storage") + text("storage") + b"tQ", "refers to a tuple"),
        (b"R", "a value that is not there"),
        (b"h\x07", "recalls value 7"),
        (b"t", "up to a mark that is not there"),
        (b"}(" + text("a") + b"u", "a key without a value"),
        (b"}(" + number(1) + text("a") + b"u", "has 1 as a key"),
        (b"}(}}u", "has a dict as a key"),
        (b"}(" + (text("k") + b"N") * 2 + b"u", "has the key 'k' twice"),
        (b"}}b", "gives state to a dict"),
        (b"N}b", "gives state to None"),
        (b"ios\nsystem\n", "the operation 0x69"),
        (b"\x93", "the operation 0x93"),
        (b"P1\n", "the operation 0x50"),
        (b"\x82\x01", "the operation 0x82"),
        (b"\x8b\xff\xff\xff\x7f", "the operation 0x8b"),
        (b"\x8a\xff" + bytes(255), "a whole number of 255 bytes"),
        (b"X\xff\xff\xff\x7f", "a text of 2147483647 bytes"),
        (b"X\x01\x00\x00\x00\xff", "a text that is not UTF-8"),
        (b"X\x10\x00\x00\x00ab", "needs 16 bytes"),
        (b"]" + b"q\x00" + b"h\x00" * 3 + b"e", "fills a list that is not there"),
    ],
)  # fmt: skip
def test_odd_arguments_and_operations_are_refused(body: bytes, message: str) -> None:
    assert message in refusal(pth(state(a=body)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (program(tensor()), "holds an object; names with tensors are expected"),
        (program(b"]"), "holds a list; names"),
        (program(b"N"), "holds None; names"),
        (program(b""), "ends with 0 values"),
        (program(b"N.N"), "is followed by 2 bytes"),
        (program(b"NN"), "ends with 2 values"),
        (b"", "the protocol needs 2 bytes"),
        (b"\x80\x02", "an operation needs 1 bytes"),
        (b"\x80\x05N.", "pickle protocol 2"),
        (state(a=b"}"), "'a' is a dict; a tensor is expected"),
        (state(a=tensor(), epoch=number(3)), "'epoch' is 3; a tensor is expected"),
        (state(**{"a" * 2000: tensor()}), "a name of 2000 characters"),
        (state(), "the storages ['0'] belong to no tensor"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(data: bytes, message: str) -> None:
    assert message in refusal(pth(data))


DOUBLING = b"](]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200)) + b"e"
FAR = b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(1000))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (state(a=tensor(), b=DOUBLING), "; a tensor is expected"),
        (state(a=tensor(), b=b"]q\x00(h\x00h\x00h\x00e"), "; a tensor is expected"),
        (state(a=tensor(), b=b"(" * 30_000 + b"N" + b"t" * 30_000), "; a tensor is expected"),
        (state(a=tensor(), b=b"N" + FAR), "; a tensor is expected"),
        (program(b"N" * 1_000_001), "has more than 1000000 operations"),
    ],
    ids=["doubling lists", "a list in itself", "deep tuples", "far memories", "operations"],
)
def test_bombs_of_references_and_operations_stay_small(pickled: bytes, message: str) -> None:
    data = pth(pickled)
    assert message in refusal(data, within_s=1.0)
    if len(data) > 500_000:
        return
    tracemalloc.start()
    try:
        with pytest.raises(FileProblem):
            opened(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def zipped(change: Any, **settings: Any) -> bytes:
    """A file whose zip is made with `change(zipfile)` after the usual members."""
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", **settings) as file:
        file.writestr("archive/data.pkl", state(a=tensor()))
        file.writestr("archive/data/0", bytes(24))
        file.writestr("archive/version", b"3")
        change(file)
    return out.getvalue()


GOOD = pth(state(a=tensor()))


def patched(at: int, data: bytes) -> bytes:
    return GOOD[:at] + data + GOOD[at + len(data) :]


DIRECTORY = GOOD.index(b"PK\x01\x02")
END = GOOD.index(b"PK\x05\x06")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(lambda file: None, compression=zipfile.ZIP_DEFLATED), "is compressed (method 8)"),
        (zipped(lambda file: file.writestr("archive/data/0", bytes(24))), "holds 'archive/data/0' twice"),
        (zipped(lambda file: file.writestr("other/data/1", b"")), "'other/data/1', which no file of weights has"),
        (zipped(lambda file: file.writestr("archive/../../x", b"")), "'archive/../../x', which no file of weights has"),
        (zipped(lambda file: file.writestr("archive/code/model.py", b"")), "is a TorchScript program"),
        (zipped(lambda file: file.writestr("archive/data/1", b"")), "the storages ['1'] belong to no tensor"),
        (zipped(lambda file: file.writestr("archive/byteorder", b"big")), "its byteorder is b'big'"),
        (zipped(lambda file: file.writestr("archive/.storage_alignment", b"64x")), "its .storage_alignment is b'64x'"),
        (pth(state(a=tensor()), members={"archive/version": b"99"}), "its version is b'99'"),
        (patched(DIRECTORY + 38, b"\x10"), "kind 0x"),
        (zipped(lambda file: setattr(file, "comment", b"hello")), "does not end as a zip file does"),
        (GOOD + b"\0", "does not end as a zip file does"),
        (b"PK" + GOOD, "the end of the zip file|ends at byte|the place of"),
        (GOOD[:-1], "does not end as a zip file does"),
        (GOOD[: len(GOOD) // 2], "does not end as a zip file does"),
        (b"PK\x03\x04", "does not end as a zip file does"),
        (patched(6, b"\x01"), "contradict each other"),
        (patched(DIRECTORY + 8, b"\x01"), "is encrypted"),
        (patched(DIRECTORY + 8, b"\x20"), "flags 0x20"),
        (patched(DIRECTORY + 24, b"\xff"), "the size of"),
        (patched(DIRECTORY + 20, struct.pack("<II", 9, 9)), "contradict each other"),
        (patched(DIRECTORY + 20, struct.pack("<II", 2**32 - 1, 2**32 - 1)), "the zip64 field"),
        (patched(DIRECTORY + 42, b"\x07"), "the place of"),
        (patched(DIRECTORY + 16, b"\0\0\0\0"), "contradict each other"),
        (patched(30, b"X"), "contradict each other"),
        (patched(14, b"\0"), "contradict each other"),
        (patched(30 + len("archive/data.pkl") + 20, b"\xff"), "do not have their checksum (CRC error)"),
        (patched(END + 8, b"\xff\xff\xff\xff"), "the zip64 locator"),
        (patched(END + 8, b"\x01\0\x01\0"), "entries that end here"),
        (patched(END + 10, b"\x09"), "entries 4 of 9"),
        (patched(END + 16, b"\0\0\0\0"), "the zip directory"),
        (patched(END + 4, b"\x01"), "disks 1"),
    ],
)  # fmt: skip
def test_a_zip_that_lies_is_refused(data: bytes, message: str) -> None:
    assert any(each in refusal(data) for each in message.split("|"))


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked() -> None:
    data = zipped(lambda file: file.writestr("archive/data/1", bytes(100 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert len(data) < 1 << 20
    assert "is compressed" in refusal(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2), "format of before 2020"),
        (b"tensors".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "tar format of before 2016"),
        (b"", "begins with b''"),
        (b"hello", "begins with b'hell'"),
    ],
)
def test_old_formats_are_refused_by_name(data: bytes, message: str) -> None:
    assert message in refusal(data)


def test_real_old_formats_are_refused_by_name() -> None:
    torch = pytest.importorskip("torch")
    out = io.BytesIO()
    torch.save({"a": torch.ones(3)}, out, _use_new_zipfile_serialization=False)
    assert "format of before 2020" in refusal(out.getvalue())


def test_every_cut_of_a_file_is_refused() -> None:
    for end in range(0, len(GOOD), 7):
        refusal(GOOD[:end])


def test_a_flipped_bit_is_refused_or_changes_only_a_weight() -> None:
    entry = opened(GOOD).tensors["a"]
    for at in range(len(GOOD)):
        if entry.offset <= at < entry.offset + entry.num_bytes:
            continue
        try:
            again = opened(patched(at, bytes([GOOD[at] ^ 1 << at % 8])))
        except FileProblem:
            continue
        assert [(each.shape, each.dtype, each.offset) for each in again.tensors.values()] == [(entry.shape, entry.dtype, entry.offset)]
