"""From a release's data to the config of its architecture: the numbers of its shape, and what stands with the release itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from herd.errors import FileProblem
from herd.models.architecture import Config
from herd.models.llama import LlamaConfig
from herd.models.rope import Llama3, Rope

if TYPE_CHECKING:
    from herd.family.release import Release, Shape

C = TypeVar("C")

_LOW, _HIGH, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192
"""Of Meta's rotary scaling, where a release does not say otherwise."""


def config_of(release: Release, shape: Shape) -> Config:
    """`FileProblem` names a shape of no known architecture, and a number that its config does not have or lacks."""
    builder = BUILDERS.get(shape.architecture)
    if builder is None:
        raise FileProblem(f"The shape of {release.name} is of the architecture {shape.architecture!r}; herd has {', '.join(BUILDERS)}.")
    return builder(release, shape.numbers)


def _llama(release: Release, numbers: Mapping[str, Any]) -> Config:
    return _filled(
        LlamaConfig,
        release,
        numbers,
        context_length=release.context_length,
        norm_eps=release.norm_eps,
        rope=_rope(release, numbers.get("head_width", 0)),
    )


def _llama4(release: Release, numbers: Mapping[str, Any]) -> Config:
    """Intervals become lists of layers: experts in every so many (0: nowhere), a layer without positions in every so many."""
    from herd.models.llama4 import Llama4Config
    from herd.models.llama4_vision import Llama4VisionConfig

    given = dict(numbers)
    num_layers, experts, alone = given.get("num_layers", 0), given.pop("expert_interval", 0), given.pop("global_interval", 0)
    rotary = tuple(layer for layer in range(num_layers) if not alone or (layer + 1) % alone)
    return _filled(
        Llama4Config,
        release,
        given,
        expert_layers=tuple(range(experts - 1, num_layers, experts)) if experts else (),
        rotary_layers=rotary,
        chunked_layers=rotary,
        context_length=release.context_length,
        norm_eps=release.norm_eps,
        rope=_rope(release, given.get("head_width", 0)),
        vision=Llama4VisionConfig(**_LLAMA4_VISION),
    )


def _rope(release: Release, head_width: int) -> Rope:
    if release.rope_theta is None:
        raise FileProblem(f"releases.{release.name} lacks rope_theta.")
    if release.rope_factor is None:
        return Rope(release.rope_theta, head_width)
    low, high = release.rope_low or _LOW, release.rope_high or _HIGH
    return Rope(release.rope_theta, head_width, Llama3(release.rope_factor, low, high, _ORIGINAL_CONTEXT))


def _filled(kind: type[C], release: Release, numbers: Mapping[str, Any], **others: Any) -> C:
    """A config from the numbers of a shape and the values that the release gives."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    wrong = sorted(set(numbers) - known | set(numbers) & set(others))
    if wrong:
        raise FileProblem(f"The shape of {release.name} has {wrong[0]!r}; the fields of {kind.__name__} are {', '.join(sorted(known))}.")
    absent = [name for name, value in others.items() if value is None]
    if absent:
        raise FileProblem(f"releases.{release.name} lacks {', '.join(absent)}.")
    try:
        return kind(**numbers, **others)
    except TypeError:
        given = set(numbers) | set(others)
        raise FileProblem(f"The shape of {release.name} lacks some of {', '.join(sorted(known - given))}.") from None


_LLAMA4_VISION = {
    "width": 1408,
    "num_layers": 34,
    "num_heads": 16,
    "ffn_width": 5632,
    "tile": 336,
    "patch": 14,
    "merge": 2,
    "adapter_width": 4096,
    "picture_token": 200092,
}
"""The encoder is one and the same in Scout, Maverick and Guard 4."""

BUILDERS: Mapping[str, Callable[[Release, Mapping[str, Any]], Config]] = {"llama": _llama, "llama4": _llama4}
