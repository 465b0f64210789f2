"""What a pretraining run does. See docs/how-to/train.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from herd.errors import UsageError, did_you_mean
from herd.models.rope import Linear, Llama3, Rope, Yarn
from herd.records import dataclass
from herd.training.settings.initial import InitialSettings
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.parallel import ParallelSettings, check_parallel
from herd.training.settings.reading import need, need_above, need_least, need_positive
from herd.training.shape import ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One source of documents.

    name      what figures call it
    path      files or folders: text, or JSONL with a field `text`; not for drawings
    kind      "text", or "drawings": pictures of coloured shapes, made as they are needed, with a question and its answer
    weight    how often it is drawn from, beside the others' weights
    held_out  share of its sections that is never learned and that the held-out loss is measured on
    """

    name: str = "text"
    path: tuple[Path, ...] = ()
    kind: Literal["text", "drawings"] = "text"
    weight: float = 1.0
    held_out: float = 0.01

    def __post_init__(self) -> None:
        need(bool(self.name) and "/" not in self.name, "data.name", self.name, "a name without /")
        need_above(self, 0, "weight", at="data.")
        need(0 <= self.held_out < 1, "data.held_out", self.held_out, "a share from 0 to below 1")
        if (self.kind == "text") != bool(self.path):
            said = "has no path: name files or folders" if self.kind == "text" else "is drawn as it is needed and takes no path"
            raise UsageError(f"The data {self.name!r} {said}.", param="data.path")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSettings:
    """How rotary frequencies are stretched to a longer context.

    kind              "none", "linear", "llama3" or "yarn"
    factor            how many times longer the context becomes
    original_context  tokens that the model knew before (llama3, yarn)
    low, high         of llama3: wavelengths above original / low are stretched whole, those below original / high not at all
    theta             a new base; not set: the model's
    """

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    theta: float | None = None

    def __post_init__(self) -> None:
        need(math.isfinite(self.factor) and self.factor >= 1, "rope.factor", self.factor, "a finite number, 1 or more")
        need_above(self, 0, "low", "high", "theta", at="rope.")
        need(self.kind in ("none", "linear") or self.original_context > 0, "rope.original_context", self.original_context, "1 or more")

    def of(self, rope: Rope) -> Rope:
        """The frequencies of a stage, from those that the model began with."""
        theta = rope.theta if self.theta is None else self.theta
        match self.kind:
            case "linear":
                return Rope(theta, rope.width, Linear(self.factor))
            case "llama3":
                return Rope(theta, rope.width, Llama3(self.factor, self.low, self.high, self.original_context))
            case "yarn":
                return Rope(theta, rope.width, Yarn(self.factor, self.original_context))
            case _:
                return Rope(theta, rope.width, rope.scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """A part of the run with its own mix and context.

    steps     how many; of all stages together as many as loop.schedule.steps
    sequence  tokens of a sequence; 0: as the run's
    rope      rotary frequencies from here on
    mix       weights of sources by name; those that are not named have their own
    """

    steps: int
    sequence: int = 0
    rope: RopeSettings = field(default_factory=RopeSettings)
    mix: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(self.steps >= 1, "stages.steps", self.steps, "a whole number, 1 or more")
        need(self.sequence == 0 or self.sequence >= 2, "stages.sequence", self.sequence, "a whole number, 2 or more")
        weights = self.mix.values()
        need(all(math.isfinite(each) and each >= 0 for each in weights), "stages.mix", dict(self.mix), "finite weights of 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancingSettings:
    """How the experts of a layer are kept equally busy.

    bias          how much an expert's bias in the choice moves at a step, towards the less busy ones (arXiv 2408.15664); 0: no biases
    release       share of the steps, the last ones, over which biases shrink to nothing: the model that is saved has none
    loss          weight of the loss that grows as loads differ (arXiv 2101.03961), during the whole run
    release_loss  its weight while biases are released
    """

    bias: float = 0.005
    release: float = 0.2
    loss: float = 0.0
    release_loss: float = 0.01

    def __post_init__(self) -> None:
        need_positive(self, "bias", "loss", "release_loss")
        need(0 < self.release <= 1, "balancing.release", self.release, "a share above 0, up to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """A larger model to learn from beside the text: co-distillation. A token's loss is (1 - s) hard + s soft, with soft = KL(teacher ||
    student) and hard = - log p(token).

    model        the teacher, with the same tokenizer; empty: none
    share        s at the first step
    last_share   s at the last step, on half a cosine from the first
    by_gap       whether a token's s is also multiplied by how far the teacher is ahead on it: (hard of the student - hard of the
                 teacher) / hard of the student, between 0 and 1
    temperature  that both are divided by in the soft part, which is multiplied by its square
    """

    model: str = ""
    share: float = 0.7
    last_share: float = 0.3
    by_gap: bool = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("share", "last_share"):
            need(0 <= getattr(self, name) <= 1, f"teacher.{name}", getattr(self, name), "a share from 0 to 1")
        need_above(self, 0, "temperature", at="teacher.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """A pretraining run.

    model         the architecture
    initial       how weights begin
    begin         weights to begin with, instead of random ones: a model that is here or a path (mid-training)
    tokenizer     a tokenizer's file or folder, or a model whose tokenizer is taken
    data          sources, a table each
    stages        parts of the run with their own mix, length and rotary frequencies; none: the whole run is one
    sequence      tokens of a sequence
    batch_tokens  tokens of a step
    micro_tokens  tokens that are computed at once; 0: all of a step
    crossing      whether attention goes from one document to the next inside a sequence
    z_loss        weight of log^2 of the softmax's sum
    dtype         what is computed in: "float32" or "bfloat16"
    recompute     whether each layer is computed again on the way back, for less memory
    device        "cpu", "cuda", ...
    eval_tokens   of each source's held-out text that an evaluation reads, at most
    save_dtype    what the final model is saved in: "f32" or "bf16"
    optimiser     AdamW or Muon
    balancing     of experts
    teacher       co-distillation
    parallel      processes that hold one model together
    loop          steps, learning rate, seed, checkpoints
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    initial: InitialSettings = field(default_factory=InitialSettings)
    begin: str = ""
    tokenizer: str = ""
    data: tuple[SourceSettings, ...] = ()
    stages: tuple[StageSettings, ...] = ()
    sequence: int = 512
    batch_tokens: int = 8192
    micro_tokens: int = 0
    crossing: bool = False
    z_loss: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    device: str = "cpu"
    eval_tokens: int = 65536
    save_dtype: Literal["f32", "bf16"] = "f32"
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    balancing: BalancingSettings = field(default_factory=BalancingSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        need_least(self, 2, "sequence")
        check_parallel(self.parallel, self.loop, self.optimiser)
        if self.parallel.context > 1 and self.teacher.model:
            raise UsageError("A teacher reads whole documents; with parallel.context leave teacher.model out.", param="teacher.model")
        longest = max(stage.sequence for stage in self.all_stages)
        need(self.batch_tokens >= longest, "batch_tokens", self.batch_tokens, f"at least a sequence, {longest}")
        need(self.micro_tokens == 0 or self.micro_tokens >= longest, "micro_tokens", self.micro_tokens, f"0, or at least {longest}")
        need_positive(self, "z_loss")
        need_least(self, 0, "eval_tokens")
        names = [source.name for source in self.data]
        need(len(set(names)) == len(names), "data.name", names, "a name of its own for each source")
        for stage in self.stages:
            for name in stage.mix:
                if name not in names:
                    raise UsageError(f"A stage mixes {name!r}, which is no source{did_you_mean(name, names)}", param="stages.mix")
        total = sum(stage.steps for stage in self.stages)
        if self.stages and total != self.loop.schedule.steps:
            raise UsageError(f"The stages have {total} steps together; loop.schedule.steps is {self.loop.schedule.steps}.", param="stages")
        if self.begin and (self.model.like or self.model.width):
            raise UsageError("begin takes the model's architecture with its weights; leave model.like and model.width out.", param="begin")

    @property
    def all_stages(self) -> tuple[StageSettings, ...]:
        """The stages, each with its sequence length; the whole run, if none was declared."""
        stages = self.stages or (StageSettings(steps=self.loop.schedule.steps),)
        return tuple(
            StageSettings(steps=each.steps, sequence=each.sequence or self.sequence, rope=each.rope, mix=each.mix) for each in stages
        )

    @property
    def context(self) -> int:
        """The longest sequence of the run."""
        return max(stage.sequence for stage in self.all_stages)
