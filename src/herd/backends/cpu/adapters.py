"""LoRA adapters that single spans of a step name, while others of the same step have none or another.

Steps in which a span has an adapter run a program of their own, traced with all adapters: after each product that one of them
changes comes an instruction that adds every row's own update (csrc/program/low_rank.cpp). What is changed cannot be fused with
what follows, so other steps keep their program. The bits of a row are the same in both, and the same as with its adapter
alone (tests/backends/test_adapters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from herd import _core
from herd.backends.base import Plan, check_adapter, unknown_adapter
from herd.backends.cpu.packed import Packed, PackedAdapted, PackedMatrix, PackedUpdate, Packer, Updates
from herd.models.weights import TensorSpec, Update


class Adapters:
    """What was added, packed; `program` is of steps with adapters and is made by whoever traces."""

    def __init__(self, packer: Packer, specs: Mapping[str, TensorSpec]) -> None:
        self._packer = packer
        self._specs = specs
        self._packed: dict[str, dict[str, PackedUpdate]] = {}
        self.program: _core.Program | None = None

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def num_bytes(self) -> int:
        return sum(matrix.num_bytes for updates in self._packed.values() for update in updates.values() for matrix in update)

    def add(self, name: str, updates: Mapping[str, Update]) -> None:
        check_adapter(name, self._packed, updates, self._specs)
        self._packed[name] = {at: self._packer.update(update) for at, update in updates.items()}

    def remove(self, name: str) -> None:
        if self._packed.pop(name, None) is None:
            raise unknown_adapter(name, self._packed)

    def of(self, packed: Mapping[str, Packed]) -> dict[PackedMatrix | PackedAdapted, Updates]:
        """The updates of each of the model's matrices that some adapter changes."""
        names = {at for updates in self._packed.values() for at in updates}
        return {
            cast("PackedMatrix | PackedAdapted", packed[at]): tuple(updates.get(at) for updates in self._packed.values()) for at in names
        }

    def numbers(self, plan: Plan) -> list[int]:
        """Of each span's adapter, -1 for none; empty if no span has one."""
        if all(span.adapter is None for span in plan.spans):
            return []
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(self._packed)}
        numbers[None] = -1
        for span in plan.spans:
            if span.adapter not in numbers:
                raise unknown_adapter(str(span.adapter), self._packed)
        return [numbers[span.adapter] for span in plan.spans]

    def clear(self) -> None:
        self._packed.clear()
        self.program = None
