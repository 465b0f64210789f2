"""Writing a LoRA adapter as PEFT has it: a folder with adapter_config.json and adapter_model.safetensors.

`down` is PEFT's lora_A and `up` its lora_B; rows of `up` of q and k go back into the order of Hugging Face (halves of a head apart), and
so do DoRA's lengths of rows, its lora_magnitude_vector.
`checkpoints/adapter.py` reads such folders.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from herd.checkpoints.adapter import PREFIX, WEIGHTS
from herd.checkpoints.adapter_names import modules
from herd.checkpoints.stored import InMemory, Source
from herd.checkpoints.trained import CONFIG
from herd.convert.carried import as_json
from herd.convert.llama_layouts import halved
from herd.convert.safetensors_file import write_file
from herd.convert.streams import Output
from herd.convert.writing import Told, check_place, new_folder, total_bytes
from herd.dtypes import BF16, F16, F32
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.models.architecture import Config
from herd.models.weights import Adapted, Dense, TensorSpec, Update

NO_MAGNITUDES: Mapping[str, Dense] = MappingProxyType({})


def write_adapter(
    destination: str | os.PathLike[str],
    config: Config,
    updates: Mapping[str, Adapted | Update],
    *,
    magnitudes: Mapping[str, Dense] = NO_MAGNITUDES,
    base_model: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Write the low-rank updates of some of a model's matrices as a folder that PEFT opens.

    config      the model's
    updates     by our name of the matrix: adapted leaves, or the updates of an opened adapter. One rank and one scale for all
    magnitudes  with DoRA: the lengths of rows, for each of them
    base_model  what the folder names as the model that it belongs to

    The folder appears when it is whole, and nothing is overwritten. `UsageError` for updates that such a folder cannot hold.
    """
    target = Path(destination)
    named = modules(config)
    specs = {spec.name: spec for spec in named.values()}
    known_as = {spec.name: module for module, spec in named.items()}
    rank, scale = _checked(specs, updates, magnitudes)
    outputs = [output for name in updates for output in _tensors(PREFIX + known_as[name], specs[name], updates[name], magnitudes)]
    settings = {**_settings(rank, scale, _targets(known_as, updates), base_model), "use_dora": bool(magnitudes)}
    stored = total_bytes(outputs)
    check_place(target, stored)
    with new_folder(target) as folder:
        (folder / CONFIG).write_bytes(as_json(settings))
        write_file(folder / WEIGHTS, outputs, Told(progress, target.name, stored))
    return target


def _checked(
    specs: Mapping[str, TensorSpec], updates: Mapping[str, Adapted | Update], magnitudes: Mapping[str, Dense]
) -> tuple[int, float]:
    """Rank and scale of all updates."""
    if not updates:
        raise UsageError("There are no updates, so there is no adapter to write.")
    for name, update in updates.items():
        if name not in specs:
            raise UsageError(f"{name!r:.80} is no matrix of this model's layers, and PEFT's adapters hold updates of such only.")
        shapes = (update.down.shape[1:], update.up.shape[:1])
        if shapes != (specs[name].shape[1:], specs[name].shape[:1]) or update.down.shape[0] != update.up.shape[1]:
            raise UsageError(f"{name}: has an update of {update.up.shape} times {update.down.shape}; the matrix is {specs[name].shape}.")
        if update.down.dtype not in (F32, F16, BF16) or update.up.dtype not in (F32, F16, BF16):
            raise UsageError(f"{name}: has an update in {update.down.dtype.name} and {update.up.dtype.name}; f32, f16, bf16 are written.")
    if magnitudes and magnitudes.keys() != updates.keys():
        raise UsageError("Some updates have lengths of rows (DoRA) and some have none; an adapter has them for all or for none.")
    found = {(update.down.shape[0], update.scale) for update in updates.values()}
    if len(found) > 1:
        raise UsageError(f"The updates have several ranks or scales, {sorted(found)[:4]}; an adapter has one of each for all.")
    return found.pop()


def _tensors(module: str, spec: TensorSpec, update: Adapted | Update, magnitudes: Mapping[str, Dense]) -> list[Output]:
    """Both matrices of one update, and the lengths of rows."""
    up: Source = halved(InMemory(update.up), spec.rotary_heads)
    found = [Output(f"{module}.lora_A.weight", InMemory(update.down)), Output(f"{module}.lora_B.weight", up)]
    if magnitudes:
        found.append(Output(f"{module}.lora_magnitude_vector", halved(InMemory(magnitudes[spec.name]), spec.rotary_heads)))
    return found


def _targets(modules: Mapping[str, str], updates: Mapping[str, Adapted | Update]) -> list[str]:
    """`target_modules`: a short name where all layers have an update of that kind, else whole names."""
    short = {name: module.rpartition(".")[2] for name, module in modules.items()}
    partly = {short[name] for name in modules if name not in updates}
    return sorted({modules[name] if short[name] in partly else short[name] for name in updates})


def _settings(rank: int, scale: float, targets: list[str], base_model: str | None) -> dict[str, Any]:
    """adapter_config.json."""
    alpha = scale * rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": min(near, key=lambda each: abs(each / rank - scale)),
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
