"""What a model's files and its release say about it: what a provider tells others, and what to sample with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.engine import Engine
    from herd.family.finding import Found
    from herd.providers.base import ModelFacts

META_SAMPLING = {"temperature": 0.6, "top_p": 0.9}
"""What Meta's own programs sample with; used for a model that recommends nothing itself."""


def recommended_sampling(found: Found, checkpoint: Checkpoint) -> Mapping[str, float]:
    """What the model's files recommend; else its release; else Meta's own values."""
    return checkpoint.sampling_defaults or (found.release.sampling if found.release is not None else None) or META_SAMPLING


def model_facts(found: Found, checkpoint: Checkpoint, engine: Engine) -> ModelFacts:
    """What whoever asks a provider may know of the model behind it."""
    from herd.providers.base import ModelFacts

    return ModelFacts(
        name=found.name,
        context_length=engine.max_length,
        vocab_size=checkpoint.config.vocab_size,
        fingerprint=engine.backend.fingerprint,
        sources={key: fact.source for key, fact in checkpoint.facts.items()},
    )
