"""The models of `herd serve`: what each is called, which adapters it has, and what memory they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.finding import Found
    from herd.providers.base import Terms
    from herd.providers.pool import Hosted

SHARE_OF_MEMORY = 0.8


def hosted_models(models: Sequence[str], adapters: Sequence[str], load: Mapping[str, Any]) -> list[Hosted]:
    """The models by name; those that are not here are fetched."""
    from herd.cli.output import fetching
    from herd.family.finding import find_model
    from herd.providers.pool import Hosted
    from herd.providers.process import EngineOptions

    found = []
    for text in models:
        name, _, model = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        with fetching() as progress:
            at = find_model(model, progress=progress)
        path = str(at.path.absolute()) if at.release is None else at.name
        options = EngineOptions(model=path, load=dict(load), adapters=_adapters_of(name or at.name, adapters, len(models) == 1))
        aliases = () if model in (at.name, name) else (model,)
        found.append(Hosted(name=name or at.name, options=options, aliases=aliases, terms=_terms_of(at)))
    _check_adapters(adapters, [each.name for each in found])
    return found


def measured(hosted: Hosted) -> Hosted:
    """The same with what it takes in memory, as its files' heads say. `FileProblem` for files that are no model."""
    from herd.api.caching import cache_needs
    from herd.api.loading import run_behind
    from herd.checkpoints.open import open_checkpoint
    from herd.family.finding import find_model
    from herd.providers.pool import CacheNeeds

    load = hosted.options.load
    base, adapter = run_behind(find_model(hosted.options.model), None)
    checkpoint = open_checkpoint(base.path, load.get("mmproj"))
    try:
        learned = 0 if adapter is None else sum(file.stat().st_size for file in Path(adapter).glob("*.safetensors"))
        return replace(hosted, num_bytes=checkpoint.num_bytes + learned, cache=CacheNeeds(*cache_needs(checkpoint, load)))
    finally:
        checkpoint.close()


def _terms_of(at: Found) -> Terms | None:
    """The licence of a model, whatever it is called here; of what was learned, that of the texts beside it, else of the model that it was
    learned from."""
    from herd.api.loading import run_behind
    from herd.convert.notices import licence_at
    from herd.providers.base import Terms

    base, adapter = run_behind(at, None)
    beside = None if adapter is None else licence_at(Path(adapter))
    licence = beside or licence_at(base.path, base.release)
    return None if licence is None else Terms(licence=licence.title, badge=licence.badge, notice=licence.notice_line())


def _adapters_of(model: str, adapters: Sequence[str], is_only: bool) -> dict[str, str]:
    found = {}
    for text in adapters:
        base, name, folder = _adapter_parts(text)
        if base == model or (not base and is_only):
            found[name] = str(Path(folder).absolute())
    return found


def _adapter_parts(text: str) -> tuple[str, str, str]:
    """Model, name and folder of an adapter; a folder alone is called as it is called."""
    if "=" not in text and Path(text).is_dir():
        return "", Path(text).resolve().name, text
    full, _, folder = text.partition("=")
    base, _, name = full.rpartition(":")
    return base, name, folder


def _check_adapters(adapters: Sequence[str], names: Sequence[str]) -> None:
    for text in adapters:
        base, name, folder = _adapter_parts(text)
        if not name or not folder:
            raise UsageError(f"--adapter is {text!r:.100}; expected a folder, NAME=FOLDER, or MODEL:NAME=FOLDER.")
        if base not in names and (base or len(names) > 1):
            raise UsageError(
                f"--adapter {text!r:.100} names no model that is served; expected MODEL:NAME=FOLDER with one of {', '.join(names)}."
            )


def memory_budget(memory: str | None, hosted: Sequence[Hosted]) -> int | None:
    """What all models may take together; None where there is only one, which is never unloaded."""
    from herd.engine.memory import available_bytes
    from herd.planner.units import num_bytes

    if memory is not None:
        return num_bytes(memory, "--memory")
    available = available_bytes()
    return None if len(hosted) == 1 or available is None else int(available * SHARE_OF_MEMORY)


def loaded_at_start(hosted: Sequence[Hosted], budget: int | None) -> list[str]:
    """The first model, and those after it that fit beside."""
    names: list[str] = []
    used = 0
    for each in hosted:
        used += each.num_bytes
        if names and (budget is None or used > budget):
            break
        names.append(each.name)
    return names
