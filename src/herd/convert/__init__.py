"""One checkpoint into another: layouts, number formats, and whether a checkpoint is whole."""

from herd.convert.adapter_file import write_adapter
from herd.convert.conversion import Report, convert
from herd.convert.findings import Finding, Outcome, Verdict
from herd.convert.quantising import Quantised, quantise
from herd.convert.verify import verify

__all__ = ["Finding", "Outcome", "Quantised", "Report", "Verdict", "convert", "quantise", "verify", "write_adapter"]
