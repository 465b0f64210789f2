"""Hugging Face folders whose matrices are e4m3 with a scale per row: 3.1 405B (`fbgemm_fp8`) and Maverick (compressed-tensors).

    x.weight        F8_E4M3 [out, in]
    x.weight_scale  float [out, 1]

Values are read as float32, q * scale; activations stay float, where those programs round them to 8 bits. In Maverick's folder
every expert has matrices of its own, which are stacked here as the unquantised folders have them.
Sources: transformers' `integrations/fbgemm_fp8.py`, the configuration of the compressed-tensors package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from herd.checkpoints.config_reader import ConfigReader, shown
from herd.checkpoints.safetensors import Entry
from herd.checkpoints.sources import Built, Joined, Reshaped, Scaled, Source, Transposed
from herd.checkpoints.stored import StoredTensor
from herd.dtypes import BF16, F8_E4M3, F16, F32, DType
from herd.errors import FileProblem

KEY = "quantization_config"
FILE = "config.json"
CONCLUSION = "herd reads Meta's FP8 folders; take others in bf16, or as a GGUF file."
SCALE_DTYPES: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16}
# Bounds and scales of rounded activations, which are not rounded here.
ACTIVATION_SCALES = (".input_scale", ".input_scale_ub", ".input_global_scale")
EXPERT = re.compile(r"(?P<layer>.*\.feed_forward\.experts)\.(?P<number>\d+)\.(?P<part>gate_proj|up_proj|down_proj)\.weight")


def without_quantisation(
    values: Mapping[str, Any], entries: Mapping[str, Entry]
) -> tuple[dict[str, Any], dict[str, Entry], dict[str, Built]]:
    """config.json and the tensors as an unquantised folder has them: (values, plain tensors, tensors made of others)."""
    config = values.get(KEY)
    plain = dict(entries)
    if config is None:
        return dict(values), plain, {}
    _check(config)
    built: dict[str, Built] = {}
    for name, entry in entries.items():
        if entry.dtype == "F8_E4M3":
            built[name] = Built(name, _scaled(plain.pop(name), plain))
        elif name.endswith(ACTIVATION_SCALES) and len(entry.shape) < 2:
            del plain[name]
    return {key: value for key, value in values.items() if key != KEY}, plain, _stacked(built)


def _scaled(entry: Entry, plain: dict[str, Entry]) -> Source:
    """The weight times its scales, which are taken out of `plain`."""
    name = f"{entry.name}_scale"
    scale = plain.pop(name, None)
    if scale is None or scale.dtype not in SCALE_DTYPES or len(entry.shape) != 2:
        raise FileProblem(f"{shown(entry.name)} is F8_E4M3 {list(entry.shape)} and has no {shown(name)} in a float format.")
    values = StoredTensor(entry.name, F8_E4M3, entry.shape, entry.file, entry.offset)
    scales = StoredTensor(name, SCALE_DTYPES[scale.dtype], scale.shape, scale.file, scale.offset)
    rows = entry.shape[0]
    if scale.shape not in ((rows,), (rows, 1)):
        raise FileProblem(f"{shown(name)} has shape {list(scale.shape)}; one scale for each of {rows} rows is expected.")
    return Scaled(values, Reshaped(scales, (rows, 1)))


def _stacked(built: dict[str, Built]) -> dict[str, Built]:
    """Experts that have matrices of their own put together: gate and up side by side, laid out for x W, as other folders have them."""
    experts: dict[str, dict[str, dict[int, Source]]] = {}
    rest: dict[str, Built] = {}
    for name, each in built.items():
        found = EXPERT.fullmatch(name)
        if found is None:
            rest[name] = each
        else:
            experts.setdefault(found["layer"], {}).setdefault(found["part"], {})[int(found["number"])] = each
    for layer, parts in experts.items():
        counts = {len(numbered) for numbered in parts.values()}
        if len(parts) != 3 or len(counts) != 1 or any(set(numbered) != set(range(len(numbered))) for numbered in parts.values()):
            raise FileProblem(f"{shown(layer)}: the experts do not all have gate_proj, up_proj and down_proj, numbered from 0.")
        gate, up, down = (Transposed(_stack(parts[part])) for part in ("gate_proj", "up_proj", "down_proj"))
        if gate.shape != up.shape:
            raise FileProblem(f"{shown(layer)}: gate_proj is {list(gate.shape)} and up_proj {list(up.shape)}; they must be alike.")
        rest[f"{layer}.gate_up_proj"] = Built(f"{layer}.gate_up_proj", Joined((gate, up), 2))
        rest[f"{layer}.down_proj"] = Built(f"{layer}.down_proj", down)
    return rest


def _stack(numbered: Mapping[int, Source]) -> Source:
    pieces = [numbered[number] for number in range(len(numbered))]
    if len({piece.shape for piece in pieces}) != 1:
        raise FileProblem(f"{pieces[0].tensors[0].name!a}: the experts of a layer have matrices of different shapes.")
    return Joined(tuple(Reshaped(piece, (1, *piece.shape)) for piece in pieces), 0)


def _check(config: Any) -> None:
    """Refuse what is not e4m3 with a scale per row."""
    if not isinstance(config, dict):
        raise FileProblem(f"{FILE}: {KEY} is {shown(config)}; allowed is an object.")
    method = config.get("quant_method")
    if method not in ("fbgemm_fp8", "compressed-tensors"):
        raise FileProblem(f"{FILE}: {KEY}.quant_method is {shown(method)}, which is not read. {CONCLUSION}")
    r = ConfigReader(config, FILE, prefix=f"{KEY}.")
    for key in ("quant_method", "modules_to_not_convert", "ignore", "activation_scale_ub", "quantization_status", "version"):
        r.raw(key)
    for key in ("global_compression_ratio", "sparsity_config", "transform_config"):
        if r.raw(key) not in (None, {}):
            r.problem(f"{KEY}.{key} is {shown(config[key])}; allowed is nothing")
    r.expect("kv_cache_scheme", because="keys and values are not quantised by a checkpoint")
    r.expect("format", "float-quantized", "naive-quantized", because="other formats pack several numbers together")
    groups = r.raw("config_groups")
    if groups is not None and not isinstance(groups, dict):
        r.problem(f"{KEY}.config_groups is {shown(groups)}; allowed is an object")
    for name, group in (groups or {}).items() if isinstance(groups, dict | None) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        said = weights if isinstance(weights, dict) else {}
        wanted = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        if any(said.get(key, value) != value for key, value in wanted.items()) or not said:
            r.problem(f"{KEY}.config_groups.{shown(name)[1:-1]}.weights is {shown(weights)}; allowed is {wanted}")
    r.finish(CONCLUSION)
