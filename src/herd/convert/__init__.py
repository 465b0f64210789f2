"""One checkpoint into another: layouts, number formats, and whether a checkpoint is whole."""

from herd.convert.conversion import Report, convert

__all__ = ["Report", "convert"]
