"""Every tensor of a file against every weight of the model: one error that names all that disagrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from herd.checkpoints import names
from herd.checkpoints.stored import Source
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models.architecture import Config
from herd.models.rope import Rope
from herd.models.weights import Kind, TensorSpec

MAX_LISTED = 40


@runtime_checkable
class Rotating(Config, Protocol):
    """What the configs of all architectures with rotary positions have."""

    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def rope(self) -> Rope: ...


class Held(Source, Protocol):
    """A tensor that a file holds, or that stands for some of them."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> MappedFile: ...


H = TypeVar("H", bound=Held)


def account(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, H],
    table: dict[str, str],
    where: str,
    harmless: Mapping[str, str],
    unreadable: Sequence[str] = (),
) -> dict[str, H]:
    """Our name -> stored tensor, for every spec.

    `harmless` maps names of further tensors in the file to why they are not needed; `unreadable` are problems found before.
    """
    problems = list(unreadable)
    found: dict[str, H] = {}
    wanted: set[str] = set(harmless)
    for spec in specs:
        name = names.in_file(table, spec.name)
        wanted.add(name)
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(spec.shape)} is missing")
        elif tensor.shape != spec.shape:
            problems.append(f"{name} has shape {list(tensor.shape)} in {tensor.file.name}; the config says {list(spec.shape)}")
        elif tensor.dtype.is_block and (len(spec.shape) < 2 or spec.kind in (Kind.NORM, Kind.BIAS)):
            problems.append(f"{name} is stored as {tensor.dtype.name}; a vector must be f32, f16 or bf16")
        else:
            found[spec.name] = tensor
    extra = [tensor for tensor in tensors.values() if tensor.name not in wanted]
    problems += [f"{tensor.name!a} {list(tensor.shape)} belongs to no part of this model" for tensor in extra]
    if problems:
        refuse(where, problems, "The config and the weights are from different models, or the file is of a kind that is not known.")
    return found


def refuse(where: str, problems: Sequence[str], conclusion: str) -> None:
    """Raise one `FileProblem` that lists `problems`."""
    shown = [*problems[:MAX_LISTED], *([f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else [])]
    if len(shown) == 1:
        raise FileProblem(f"{where}: {shown[0]}. {conclusion}")
    raise FileProblem(f"{where}: {len(problems)} things are wrong. {conclusion}\n" + "\n".join(f"  - {problem}" for problem in shown))


def check_config(cfg: Config, where: str, num_tensors: int) -> None:
    """Refuse numbers that no model can have, all at once, before a list of tensors is made from them."""
    problems: list[str] = []
    if cfg.num_layers > num_tensors:
        problems.append(f"{cfg.num_layers} layers are declared and the file has {num_tensors} tensors in all")
    if isinstance(cfg, Rotating):
        problems += _rotary_problems(cfg)
    if problems:
        refuse(where, problems, "These are not the numbers of a model.")


def _rotary_problems(cfg: Rotating) -> list[str]:
    problems = []
    if cfg.num_heads % cfg.num_kv_heads:
        problems.append(f"{cfg.num_heads} query heads cannot be shared out evenly over {cfg.num_kv_heads} kv heads")
    if cfg.head_width % 2:
        problems.append(f"the head width {cfg.head_width} is odd; rotary positions turn pairs")
    if cfg.rope.width % 2 or cfg.rope.width > cfg.head_width:
        problems.append(f"the rotary width {cfg.rope.width} must be even and at most the head width {cfg.head_width}")
    return problems
