"""What a model's files recommend for sampling, checked when they are opened, so that no chat fails on it later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.config_reader import shown
from herd.errors import FileProblem

# What sampling accepts: name -> lowest, highest.
RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


def read_advice(values: Mapping[str, Any], wanted: Mapping[str, str], where: str) -> dict[str, float]:
    """The recommendations in `values`, of which `wanted` says the name there -> the name here. `FileProblem` for impossible ones."""
    advice: dict[str, float] = {}
    for key, name in wanted.items():
        value = values.get(key)
        if value is None:
            continue
        lowest, highest = RANGES[name]
        kind = "whole number" if name == "top_k" else "number"
        sound = isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest
        if not sound or (name == "top_k" and value != int(value)):
            raise FileProblem(f"{where}: {key} is {shown(value)}; allowed is a {kind} from {lowest} to {highest}.")
        advice[name] = int(value) if name == "top_k" else float(value)
    return advice
