"""Facts about a model as rows: what, its value, and where it comes from. `herd show` prints them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.family.catalogue import Release

Row = tuple[str, Any, str]
"""What, its value, and where it comes from."""

_NUMBERS = (
    ("layers", "num_layers"),
    ("width", "width"),
    ("query heads", "num_heads"),
    ("kv heads", "num_kv_heads"),
    ("head width", "head_width"),
    ("ffn width", "ffn_width"),
    ("ffn width", "mlp_width"),
    ("expert width", "expert_width"),
    ("experts", "num_experts"),
    ("experts for one token", "num_chosen"),
    ("vocabulary", "vocab_size"),
    ("context", "context_length"),
    ("attention chunk", "chunk"),
    ("q/k norm", "qk_norm"),
    ("labels", "labels"),
)
"""Fields of configs, in the order in which they are shown; a config has some of them."""


def architecture_rows(name: str, config: Any, sources: Mapping[str, str] | None = None) -> list[Row]:
    """What a config says, whatever its architecture. `sources`: those of a release, where the config is made from its data."""
    from herd.models.sizes import count_parameters

    sources = sources or {}
    source = sources.get("shape", "")
    rows: list[Row] = [("architecture", name, source), ("parameters", count_parameters(config), "sum over all weights")]
    rows += [(title, getattr(config, key), sources.get(key, source)) for title, key in _NUMBERS if getattr(config, key, None) is not None]
    rows += [(title, _places(value, config.num_layers), source) for title, value in _layers(config)]
    rope = getattr(config, "rope", None)
    if rope is not None:
        rows.append(("rope base", rope.theta, sources.get("rope_theta", source)))
        rows.append(
            ("rope scaling", "none" if rope.scaling is None else type(rope.scaling).__name__.lower(), sources.get("rope_factor", source))
        )
    if hasattr(config, "tied_embeddings"):
        rows.append(("tied embeddings", config.tied_embeddings, source))
    vision = getattr(config, "vision", None)
    if vision is not None:
        rows += [("vision width", vision.width, source), ("vision layers", _depth(vision), source)]
    return rows


def _layers(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Layers of a special kind, by index."""
    found = []
    if hasattr(config, "expert_layers"):
        found.append(("layers with experts", config.expert_layers))
    if hasattr(config, "rotary_layers"):
        found.append(("layers without positions", tuple(i for i in range(config.num_layers) if i not in config.rotary_layers)))
    if hasattr(config, "layers"):
        found.append(("layers without positions", tuple(i for i, kind in enumerate(config.layers) if not kind.has_positions)))
    if hasattr(config, "crossing"):
        found.append(("crossing to pictures before", config.crossing))
    return found


def _places(layers: tuple[int, ...], total: int) -> str:
    """The indices of some layers in few words."""
    if len(layers) in (0, total):
        return "none" if not layers else "all"
    steps = {after - before for before, after in itertools.pairwise(layers)}
    if len(layers) > 3 and len(steps) == 1:
        return f"{len(layers)}: {layers[0]}, {layers[1]}, ... {layers[-1]}"
    return f"{len(layers)}: {', '.join(map(str, layers))}"


def _depth(vision: Any) -> int:
    return len(vision.is_local) if hasattr(vision, "is_local") else int(vision.num_layers)


def release_sections(release: Release) -> dict[str, list[Row]]:
    """What the family knows of a release: itself, its files, its published scores."""
    from herd.family.scores import scores_of

    sections = {"Release": _release(release), "Files": _files(release)}
    scores = scores_of(release.name)
    if scores:
        sections["Scores"] = [
            (score.title, score.value, f"{score.source}{', not read there itself' if score.is_secondhand else ''}") for score in scores
        ]
    return sections


def _release(release: Release) -> list[Row]:
    catalogue, sources = "family catalogue", release.sources
    rows: list[Row] = [
        ("title", release.title, catalogue),
        ("kind", release.kind if release.is_released else f"{release.kind}, announced and not released", catalogue),
        ("released", release.released.isoformat() if release.is_released else "no", sources["released"]),
        ("licence", release.licence, "licence text"),
        ("takes", list(release.inputs), catalogue),
        ("gives", list(release.outputs), catalogue),
        ("languages", list(release.languages) or "not stated", catalogue),
        (
            "knowledge cutoff",
            release.knowledge_cutoff or "not stated",
            sources.get("knowledge_cutoff", "") if release.knowledge_cutoff else "",
        ),
        ("recommended sampling", dict(release.sampling or {}) or "none", sources.get("sampling", "") if release.sampling else ""),
    ]
    optional = (
        ("languages with images", list(release.image_languages), catalogue),
        ("made from", release.base, catalogue),
        ("parameters for one token", release.active_parameters, sources.get("active_parameters", "")),
        ("parameters as stored", release.huggingface_parameters, sources.get("huggingface_parameters", "")),
        ("pretraining tokens", release.pretraining_tokens, sources.get("pretraining_tokens", "")),
        (f"GPU hours on {release.gpu}", release.gpu_hours, sources.get("gpu_hours", "")),
        ("chat format", release.chat_format, catalogue),
        ("fills gaps", release.can_infill or None, catalogue),
        *((f"announced {what}", value, sources["announced"]) for what, value in release.announced.items()),
        ("note", release.note, catalogue),
    )
    return rows + [row for row in optional if row[1]]


def _files(release: Release) -> list[Row]:
    """Where and how it is published, and what of that could only be built from a description."""
    if not release.is_released:
        return []
    shards = "" if not release.meta_shards else "1 shard" if release.meta_shards == 1 else f"{release.meta_shards} shards"
    rows: list[Row] = [
        ("repository", release.repository or "none", "hub"),
        ("gated", release.gated, "hub"),
        ("layouts", list(release.layouts), f"Meta's in {shards}: {release.sources['meta_shards']}" if shards else "family catalogue"),
        ("stored as", release.storage, "family catalogue"),
    ]
    optional = (
        ("repository, Meta layout", release.meta_repository, "hub"),
        ("quantised", release.quantised, "family catalogue"),
        ("not verified", release.unverified, "family catalogue"),
    )
    return rows + [row for row in optional if row[1]]
