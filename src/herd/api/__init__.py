"""The Python face: `load` a model, then ask it."""

from herd.api.loading import load
from herd.api.model import Model, Output

__all__ = ["Model", "Output", "load"]
