"""LoRA adapters as PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

    y = x W^T + scale * (x down^T) up^T      scale = alpha / rank, or alpha / sqrt(rank) with use_rslora

`down` is PEFT's lora_A [rank, in], `up` its lora_B [out, rank]. The rows of `up` of q and k are in the order of Hugging Face
(halves of a head apart) and are brought into ours, whatever layout the base model came in. With DoRA there is a length for each row
of the sum besides, PEFT's lora_magnitude_vector [out]; such an adapter is merged when it is loaded.
Sources: arXiv 2106.09685 (LoRA), arXiv 2312.03732 (rank-stabilised), arXiv 2402.09353 (DoRA), the configuration of the `peft` package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from herd.checkpoints.account import refuse
from herd.checkpoints.adapter_names import as_in_memory, modules
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.config_reader import ConfigReader, shown
from herd.checkpoints.folder import inside
from herd.checkpoints.huggingface import DTYPES
from herd.checkpoints.merging import Merged, merged
from herd.checkpoints.safetensors import Entry, read_safetensors
from herd.checkpoints.sources import Interleaved, StoredTensor
from herd.checkpoints.trained import CONFIG
from herd.errors import UsageError
from herd.files import MappedFile, read_json
from herd.models.architecture import Config
from herd.models.weights import Adapted, Dense, Leaf, Matrix, Update

WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 1 << 14
PREFIX = "base_model.model."
CONCLUSION = "This adapter cannot be used with this model."

HARMLESS = {
    "base_model_name_or_path": "names the base model; shapes decide whether it fits",
    "revision": "names a version of the base model",
    "peft_version": "names the program that wrote it",
    "auto_mapping": "how PEFT finds its own classes",
    "inference_mode": "whether PEFT would train it further",
    "init_lora_weights": "how training began",
    "lora_dropout": "used in training only",
    "loftq_config": "how training began",
    "eva_config": "how training began",
    "corda_config": "how training began",
    "lora_ga_config": "how training began",
    "megatron_config": "how training was split over machines",
    "megatron_core": "how training was split over machines",
    "qalora_group_size": "used with use_qalora only, which is refused",
    "task_type": "what PEFT would wrap around the model",
}
MUST_BE = {
    "peft_type": ("LORA", "only LoRA adapters are read"),
    "bias": ("none", "trained biases are not read"),
    "fan_in_fan_out": (False, "weights are stored [out, in]"),
    "use_qalora": (False, "its products are grouped"),
    "lora_bias": (False, "the update has no bias here"),
    "ensure_weight_tying": (False, "embeddings are not adapted here"),
}
MUST_BE_EMPTY = (
    "alpha_pattern",
    "rank_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "layer_replication",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """All updates of an adapter, by the names of our weights. `magnitudes`: with DoRA, the lengths of rows."""

    path: Path
    rank: int
    factors: Mapping[str, Update]
    magnitudes: Mapping[str, Dense] = field(default_factory=dict)

    @property
    def updates(self) -> Mapping[str, Update]:
        """What a running model takes beside others. `UsageError` for DoRA."""
        if self.magnitudes:
            raise UsageError(
                f"{self.path}: is a DoRA adapter, which changes whole matrices and cannot lie beside others. Load the model with it, or "
                "merge it: herd tune merge."
            )
        return self.factors

    def leaf_over(self, leaf: Leaf) -> Leaf:
        """The weights of `leaf` with the updates on them."""

        def adapted(name: str) -> Matrix:
            update, base = self.factors.get(name), leaf(name)
            if update is None:
                return base
            if name not in self.magnitudes:
                return update.over(base, name)
            if isinstance(base, Adapted):
                raise UsageError(f"{name} carries an adapter already; merge it first.")
            return merged(base, update, self.magnitudes[name])

        return adapted

    def merged_into(self, checkpoint: Checkpoint, *, is_wide: bool = False) -> Checkpoint:
        """The checkpoint with the updates in its weights, put together when they are read; `is_wide`: as float32, nothing rounded."""
        return checkpoint.with_sources(
            {name: Merged(checkpoint.source(name), update, self.magnitudes.get(name), is_wide) for name, update in self.factors.items()}
        )


def open_adapter(folder: Path, cfg: Config) -> Adapter:
    """The adapter in `folder` (or in what a run of training left there), for a model of this config. `FileProblem` lists everything that
    does not fit, by name."""
    if not (folder / CONFIG).is_file() and (folder / "adapter" / CONFIG).is_file():
        folder = folder / "adapter"
    config = inside(folder, CONFIG, folder.name)
    asked = _read_config(ConfigReader(read_json(config), CONFIG))
    entries = read_safetensors(MappedFile(inside(folder, WEIGHTS, folder.name)))
    factors, magnitudes = _match(cfg, {_spelled(name): entry for name, entry in entries.items()}, asked)
    return Adapter(folder, asked.rank, factors, magnitudes)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a config says. `targets`: names of the adapted modules; None: every matrix."""

    rank: int
    scale: float
    targets: set[str] | None
    has_magnitudes: bool


def _spelled(name: str) -> str:
    """A tensor's name, with its module as we call it."""
    return PREFIX + as_in_memory(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def _read_config(reader: ConfigReader) -> _Asked:
    for key, (value, because) in MUST_BE.items():
        reader.expect(key, value, because=because)
    for key in MUST_BE_EMPTY:
        value = reader.raw(key)
        if value:
            reader.problem(f"{key} is {shown(value)}; allowed is nothing: one rank for whole matrices is what is read")
    rank = reader.integer("r", highest=MAX_RANK)
    alpha = reader.number("lora_alpha", lowest=0.0, highest=1e9)
    is_stabilised = reader.boolean("use_rslora", default=False)
    has_magnitudes = reader.boolean("use_dora", default=False)
    modules = reader.raw("target_modules")
    targets: set[str] | None = None
    if isinstance(modules, list) and modules and all(isinstance(module, str) for module in modules):
        targets = set(modules)
    elif modules != "all-linear":
        reader.problem(f'target_modules is {shown(modules)}; allowed is a list of names or "all-linear"')
    reader.finish(CONCLUSION, HARMLESS)
    return _Asked(rank, alpha / (math.sqrt(rank) if is_stabilised else rank), targets, has_magnitudes)


def _match(cfg: Config, entries: Mapping[str, Entry], asked: _Asked) -> tuple[dict[str, Update], dict[str, Dense]]:
    """Every tensor of the file against every matrix that is meant."""
    problems: list[str] = []
    updates: dict[str, Update] = {}
    magnitudes: dict[str, Dense] = {}
    used: set[str] = set()
    matrices, targets, rank = modules(cfg), asked.targets, asked.rank
    wanted = {module: spec for module, spec in matrices.items() if targets is None or _is_target(module, targets)}
    for target in sorted(targets or ()):
        if not any(_is_target(module, {target}) for module in matrices):
            problems.append(f"target_modules has {shown(target)}, which is no matrix of this model's layers")
    for module, spec in wanted.items():
        down, up = f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
        lengths = f"{PREFIX}{module}.lora_magnitude_vector"
        found = len(problems)
        problems += _complaints(entries, down, (rank, spec.shape[1])) + _complaints(entries, up, (spec.shape[0], rank))
        problems += _complaints(entries, lengths, (spec.shape[0],)) if asked.has_magnitudes else []
        used |= {down, up, lengths} if asked.has_magnitudes else {down, up}
        if len(problems) == found:
            updates[spec.name] = Update(_leaf(entries[down], 0), _leaf(entries[up], spec.rotary_heads), asked.scale)
            if asked.has_magnitudes:
                magnitudes[spec.name] = _leaf(entries[lengths], spec.rotary_heads)
    problems += [f"{shown(name)} belongs to none of the target_modules" for name in entries if name not in used]
    if problems:
        refuse(WEIGHTS, problems, CONCLUSION)
    return updates, magnitudes


def _is_target(module: str, targets: set[str]) -> bool:
    """As PEFT matches: the whole name, or its end after a dot."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _complaints(entries: Mapping[str, Entry], name: str, shape: tuple[int, ...]) -> list[str]:
    entry = entries.get(name)
    if entry is None:
        return [f"{name} {list(shape)} is missing"]
    if entry.dtype not in DTYPES:
        return [f"{name} is stored as {entry.dtype}; F32, F16 and BF16 are read"]
    if entry.shape != shape:
        return [f"{name} has shape {list(entry.shape)}; the model and the rank say {list(shape)}"]
    return []


def _leaf(entry: Entry, rotary_heads: int) -> Dense:
    tensor = StoredTensor(entry.name, DTYPES[entry.dtype], entry.shape, entry.file, entry.offset)
    return Dense(tensor.dtype, tensor.shape, Interleaved(tensor, rotary_heads).rows() if rotary_heads else tensor.rows())
