"""PyTorch's .pth files: a zip with a pickle that describes tensors, and their bytes, looked at in place.

    <root>/data.pkl      name -> tensor (storage, offset, shape, strides), as a pickle, read by `pickle_machine`
    <root>/data/<key>    the bytes of one storage
    <root>/byteorder     "little";  <root>/version "3";  a few more numbers about the file

Source: PyTorch's `torch/serialization.py` and `torch/_utils.py`, version 2.13. Formats before 2020 (one pickle stream, or tar)
are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herd.checkpoints.config_reader import shown
from herd.checkpoints.pickle_machine import Machine, Made, Name, Opaque, described
from herd.checkpoints.safetensors import ELEMENT_BYTES, MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_TENSORS, Entry
from herd.checkpoints.zip_file import Member, checksums, read_zip
from herd.errors import FileProblem
from herd.files import MappedFile

MAX_PICKLE_BYTES = 64 << 20
STORAGES = {
    "torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16", "torch DoubleStorage": "F64",
    "torch LongStorage": "I64", "torch IntStorage": "I32", "torch ShortStorage": "I16", "torch CharStorage": "I8",
    "torch ByteStorage": "U8", "torch BoolStorage": "BOOL", "torch.storage UntypedStorage": "U8",
}  # fmt: skip
NEW_DTYPES = {"torch float8_e4m3fn": "F8_E4M3", "torch float8_e5m2": "F8_E5M2"}
EXPECTED = {"byteorder": b"little", "version": b"3"}
NUMBERS = (".format_version", ".storage_alignment", ".data/serialization_id")
AGAIN = "Open it in a program that you trust it with and save it again: torch.save(torch.load(file, weights_only=True), new_file)."


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A contiguous tensor: `offset` bytes into its storage."""

    dtype: str
    shape: tuple[int, ...]
    storage: _Storage
    offset: int


@dataclass(frozen=True, slots=True)
class PthFile:
    """One file: its tensors by name, and its members, for checksums. Tensors may share bytes."""

    file: MappedFile
    tensors: Mapping[str, Entry]
    members: Mapping[str, Member]

    def damaged(self) -> list[str]:
        """Members whose bytes do not have the checksum that the file gives for them. Reads the whole file."""
        return checksums(self.file, self.members, list(self.members))


def read_pth(file: MappedFile) -> PthFile:
    """All tensors of the file, their ranges checked; no weight is touched. `FileProblem` names what is wrong or asked for."""
    _refuse_old(file)
    members = read_zip(file)
    root = next(iter(members), "").partition("/")[0]
    pickled = members.get(f"{root}/data.pkl")
    if pickled is None:
        raise FileProblem(f"{file.name}: is a zip file without data.pkl, so it is not one of PyTorch's.")
    if pickled.size > MAX_PICKLE_BYTES:
        raise FileProblem(
            f"{file.name}: its data.pkl has {pickled.size} bytes; at most {MAX_PICKLE_BYTES} are read, and no model needs them."
        )
    if checksums(file, members, [pickled.name]):
        raise FileProblem(
            f"{file.name}: the bytes of data.pkl do not have their checksum (CRC error). The file is damaged; fetch it again."
        )
    storages = _storages(file, members, root)
    described = _describe(file, pickled, storages)
    used = {tensor.storage.key for tensor in described.values()}
    if unused := sorted(set(storages) - used):
        raise FileProblem(f"{file.name}: the storages {shown(unused)} belong to no tensor. The file is damaged, or made to mislead.")
    return PthFile(file, {name: _entry(name, tensor, file, storages) for name, tensor in described.items()}, members)


def _refuse_old(file: MappedFile) -> None:
    start = bytes(file.view[:512])
    if start[:2] == b"PK":
        return
    if start[257:262] == b"ustar":
        raise FileProblem(f"{file.name}: is in PyTorch's tar format of before 2016, which is not read. {AGAIN}")
    if start[:1] == b"\x80":
        raise FileProblem(f"{file.name}: is one stream of pickles, PyTorch's format of before 2020, which is not read. {AGAIN}")
    raise FileProblem(f"{file.name}: begins with {start[:4]!a} and not as a zip file, which PyTorch's files are. It is damaged or foreign.")


def _storages(file: MappedFile, members: Mapping[str, Member], root: str) -> dict[str, Member]:
    """The storages by key; every other member is known or refused."""
    storages: dict[str, Member] = {}
    for name, member in members.items():
        where, _, rest = name.partition("/")
        if where == root and rest.startswith("data/"):
            storages[rest.removeprefix("data/")] = member
        elif where == root and rest in EXPECTED:
            content = bytes(file.view[member.offset : member.offset + min(member.size, 16)]).strip()
            if content != EXPECTED[rest]:
                raise FileProblem(f"{file.name}: its {rest} is {content!a}; allowed is {EXPECTED[rest]!a}.")
        elif where == root and rest.startswith(("code/", "constants")):
            raise FileProblem(f"{file.name}: is a TorchScript program (it has {shown(rest)}), which is not read: it is code.")
        elif where == root and rest in NUMBERS:
            content = bytes(file.view[member.offset : member.offset + min(member.size, 64)])
            if not content.isdigit():
                raise FileProblem(f"{file.name}: its {rest} is {content!a}; allowed is a whole number.")
        elif where != root or rest != "data.pkl":
            raise FileProblem(f"{file.name}: holds {shown(name)}, which no file of weights has.")
    if f"{root}/version" not in members:
        raise FileProblem(f"{file.name}: has no member version, which all of PyTorch's files have.")
    return storages


def _describe(file: MappedFile, pickled: Member, storages: Mapping[str, Member]) -> dict[str, _Tensor]:
    """The tensors by name, as the pickle describes them."""

    def storage(reference: tuple[Any, ...]) -> _Storage | None:
        return _storage(reference, storages)

    data = file.view[pickled.offset : pickled.offset + pickled.size]
    found = Machine(data, f"{file.name}: data.pkl", NAMES, storage).run()
    if type(found) is not dict:
        raise FileProblem(f"{file.name}: holds {described(found)}; names with tensors are expected.")
    if len(found) > MAX_TENSORS:
        raise FileProblem(f"{file.name}: has {len(found)} tensors; at most {MAX_TENSORS} are allowed.")
    tensors: dict[str, _Tensor] = {}
    for name, value in found.items():
        if len(name) > MAX_NAME_BYTES:
            raise FileProblem(f"{file.name}: a tensor has a name of {len(name)} characters; at most {MAX_NAME_BYTES} are allowed.")
        if type(value) is _Tensor:
            tensors[name] = value
        elif not (name.endswith("_extra_state") and (value is None or type(value) is Opaque)):
            raise FileProblem(f"{file.name}: {shown(name)} is {described(value)}; a tensor is expected. It is no file of weights alone.")
    return tensors


def _storage(reference: tuple[Any, ...], members: Mapping[str, Member]) -> _Storage | None:
    """('storage', class, key, device, number of elements), or None if it is not that or contradicts the file."""
    if len(reference) != 5 or reference[0] != "storage" or not all(type(each) is str for each in (*reference[:1], *reference[2:4])):
        return None
    _, kind, key, _, count = reference
    if type(kind) is not Name or kind.text not in STORAGES or type(count) is not int or key not in members:
        return None
    dtype = STORAGES[kind.text]
    return _Storage(dtype, key, members[key].size) if members[key].size == count * ELEMENT_BYTES[dtype] else None


def _rebuild(arguments: tuple[Any, ...], dtype: str = "") -> _Tensor | None:
    """(storage, offset, shape, strides, whether it is trained, hooks, more); None for what is no contiguous tensor inside its
    storage."""
    if not 6 <= len(arguments) <= 7 or type(arguments[0]) is not _Storage:
        return None
    storage, offset, shape, strides, trained, hooks = arguments[:6]
    if type(trained) is not bool or hooks not in (None, {}) or arguments[6:] not in ((), (None,), ({},)):
        return None
    dtype = dtype or storage.dtype
    if type(offset) is not int or type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        return None
    if len(shape) > MAX_DIMENSIONS or offset < 0 or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        return None
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if type(stride) is not int or (size != 1 and stride != step):
            return None
        step *= size
    width = ELEMENT_BYTES[dtype]
    if (offset + math.prod(shape)) * width > storage.num_bytes:
        return None
    return _Tensor(dtype, shape, storage, offset * width)


def _rebuild_v3(arguments: tuple[Any, ...]) -> _Tensor | None:
    """As `_rebuild`, over a storage without a type, the type being the seventh."""
    if len(arguments) not in (7, 8) or type(arguments[6]) is not Name or arguments[6].text not in NEW_DTYPES:
        return None
    return _rebuild(arguments[:6], NEW_DTYPES[arguments[6].text])


def _parameter(arguments: tuple[Any, ...]) -> _Tensor | None:
    """A parameter is its tensor."""
    fits = len(arguments) == 3 and type(arguments[0]) is _Tensor and type(arguments[1]) is bool and arguments[2] in (None, {})
    return arguments[0] if fits else None


def _ordered(arguments: tuple[Any, ...]) -> dict[str, Any] | None:
    return {} if arguments == () else None


def _opaque(_arguments: tuple[Any, ...]) -> Opaque:
    return Opaque()


# All that may be asked for. The last two are how Llama 4's `_extra_state` entries, which are ignored, may be written.
NAMES: dict[str, Made | None] = {
    "torch._utils _rebuild_tensor_v2": _rebuild,
    "torch._utils _rebuild_tensor_v3": _rebuild_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
    **dict.fromkeys(STORAGES),
    **dict.fromkeys(NEW_DTYPES),
    "_io BytesIO": _opaque,
    "_codecs encode": _opaque,
}


def _entry(name: str, tensor: _Tensor, file: MappedFile, storages: Mapping[str, Member]) -> Entry:
    start = storages[tensor.storage.key].offset + tensor.offset
    return Entry(name, tensor.dtype, tensor.shape, file, start, math.prod(tensor.shape) * ELEMENT_BYTES[tensor.dtype])
