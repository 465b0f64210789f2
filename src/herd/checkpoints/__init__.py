"""Files to tensors: what a model on disk is, checked whole before any weight is touched."""

from herd.checkpoints.checkpoint import Checkpoint, Fact, TokenizerSource
from herd.checkpoints.open import open_checkpoint

__all__ = ["Checkpoint", "Fact", "TokenizerSource", "open_checkpoint"]
