"""The Python face: `load` a model, then ask it."""

from herd.api.loading import load
from herd.api.model import Model
from herd.api.output import Output

__all__ = ["Model", "Output", "load"]
