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


def _llama3_vision(release: Release, numbers: Mapping[str, Any]) -> Config:
    """Crossing blocks stand before layers counted down from the last one, evenly."""
    from herd.models.llama3_vision import META_PICTURE, Llama3VisionConfig
    from herd.models.llama3_vision_encoder import EncoderConfig

    given = dict(numbers)
    num_layers, num_crossing, vision = given.get("num_layers", 0), given.pop("num_crossing", 0), dict(given.pop("vision", {}))
    step = -(-num_layers // max(num_crossing, 1))
    return _filled(
        Llama3VisionConfig,
        release,
        given,
        crossing=tuple(num_layers - 1 - step * place for place in reversed(range(num_crossing))),
        context_length=release.context_length,
        norm_eps=release.norm_eps,
        rope=_rope(release, given.get("head_width", 0)),
        picture_aliases=(META_PICTURE,),
        vision=_filled(EncoderConfig, release, {**vision, "kept": tuple(vision.get("kept", ()))}),
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
        {**given, "vision": _filled(Llama4VisionConfig, release, given.get("vision", {}))},
        expert_layers=tuple(range(experts - 1, num_layers, experts)) if experts else (),
        rotary_layers=rotary,
        chunked_layers=rotary,
        context_length=release.context_length,
        norm_eps=release.norm_eps,
        rope=_rope(release, given.get("head_width", 0)),
    )


def _muse_glimmer(release: Release, numbers: Mapping[str, Any]) -> Config:
    """Of the text model every so many layers, counted from the last, see everything and have no positions; of the encoder every so
    many, counted from the first, and the last, see more than their window."""
    from herd.models.muse_glimmer import LayerKind, MuseGlimmerConfig
    from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig

    given, encoder = dict(numbers), dict(numbers.get("vision", {}))
    last, alone, window = given.pop("num_layers", 0) - 1, given.pop("global_interval", 1), given.pop("window", None)
    depth, wide = encoder.pop("num_layers", 0), encoder.pop("global_interval", 1)
    encoder["is_local"] = tuple((layer + 1) % wide != 0 and layer != depth - 1 for layer in range(depth))
    return _filled(
        MuseGlimmerConfig,
        release,
        {**given, "vision": _filled(MuseGlimmerVisionConfig, release, encoder)},
        layers=tuple(LayerKind(None, False) if (last - layer) % alone == 0 else LayerKind(window, True) for layer in range(last + 1)),
        context_length=release.context_length,
        norm_eps=release.norm_eps,
        rope=_rope(release, given.get("head_width", 0)),
    )


def _deberta(release: Release, numbers: Mapping[str, Any]) -> Config:
    from herd.models.deberta import DebertaConfig

    return _filled(DebertaConfig, release, numbers, labels=release.labels, context_length=release.context_length, norm_eps=release.norm_eps)


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


BUILDERS: Mapping[str, Callable[[Release, Mapping[str, Any]], Config]] = {
    "llama": _llama,
    "llama3_vision": _llama3_vision,
    "llama4": _llama4,
    "muse_glimmer": _muse_glimmer,
    "deberta": _deberta,
}
"""One per architecture that the data names."""
