"""How many processes hold one model together."""

from __future__ import annotations

from herd.errors import UsageError
from herd.records import dataclass
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.reading import need_least


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSettings:
    """Processes that hold one model or one document together; those beyond share the documents of a step. A resumed run may have others.

    tensor   how many divide the heads of attention and the columns of feed-forwards; 1: each has all
    expert   how many divide the experts of a Llama 4; 1: each has all. Where tensor is more than 1 too, both are the same number
    context  how many compute a stretch of each document's tokens; 1: a document is computed by one process. Not together with the others
    """

    tensor: int = 1
    expert: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        need_least(self, 1, "tensor", "expert", "context")
        if 1 not in (self.tensor, self.expert) and self.tensor != self.expert:
            raise UsageError(
                f"parallel.tensor is {self.tensor} and parallel.expert {self.expert}; the same processes divide both, so give one number, "
                "or leave one at 1.",
                param="parallel.expert",
            )

        if self.context > 1 and self.model > 1:
            raise UsageError(
                f"parallel.context is {self.context}, and parallel.tensor or expert divides the model; leave one of them at 1.",
                param="parallel.context",
            )

    @property
    def model(self) -> int:
        """Processes that hold one model."""
        return max(self.tensor, self.expert)

    @property
    def together(self) -> int:
        """Processes that do the same part of a step."""
        return max(self.model, self.context)


def check_parallel(parallel: ParallelSettings, loop: LoopSettings, optimiser: OptimiserSettings) -> None:
    """`UsageError` for what does not go together with a model that several processes hold."""
    if parallel.model == 1:
        return
    if loop.divided:
        raise UsageError("loop.divided is true, and [parallel] divides the model already. Leave one of them.", param="loop.divided")
    if optimiser.name != "adamw":
        raise UsageError("Muon looks at whole matrices; with [parallel] take optimiser.name=adamw.", param="optimiser.name")
