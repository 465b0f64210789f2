"""Reward models that judge the answers of a run: opened from the folders that `herd tune reward` leaves, and put beside its model.

A reward model reads the very ids that the run's model has written. So both need one vocabulary, one chat format and one way to look at
pictures; what differs is refused by name before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from herd.api.tuning import Opened, open_tuned
from herd.errors import FileProblem, UsageError
from herd.family.progress import Progress, silent
from herd.models.architecture import num_embeddings
from herd.text.messages import Message, Role
from herd.training.recipes.grpo import Problem
from herd.training.recipes.reward_model import FILE, RewardModel, read_head
from herd.training.settings.lora import Lora
from herd.training.settings.rewards import RewardSettings
from herd.training.settings.student import StudentSettings
from herd.training.signals.rewards import Asked, Judge

_PROBES: Sequence[tuple[Message, ...]] = (
    (Message(Role.USER, "a"),),
    (Message(Role.SYSTEM, "a"), Message(Role.USER, "b"), Message(Role.ASSISTANT, "c"), Message(Role.USER, "d")),
)
"""Conversations that two chat formats write alike, if they are one."""


class RewardModels:
    """The reward models that some rewards name, held against the model whose answers they judge; open as long as `opening` is.

    `FileProblem` for a folder that is none of `herd tune reward`, `UsageError` for a model that reads otherwise.
    """

    def __init__(self, rewards: Sequence[RewardSettings], opened: Opened, opening: ExitStack, progress: Progress = silent) -> None:
        self._opened = opened
        self._judges: dict[str, Opened] = {}
        for folder in dict.fromkeys(each.model for each in rewards if each.kind == "model"):
            self._judges[folder] = judge = opening.enter_context(_open(Path(folder), opened.device, progress))
            _require_same_words(folder, judge, opened)

    @property
    def files(self) -> tuple[Path, ...]:
        """What a run depends on that they judge: what each has learned."""
        return tuple(path for folder, judge in self._judges.items() for path in (Path(folder) / FILE, *judge.files))

    def check(self, problems: Sequence[Problem], longest: int) -> None:
        """`UsageError` for problems that a reward model cannot read. longest: tokens of a prompt with its answer."""
        has_pictures = any(problem.prompt.pictures for problem in problems)
        for folder, judge in self._judges.items():
            if longest > judge.cfg.context_length:
                raise UsageError(
                    f"{folder}: the reward model reads {judge.cfg.context_length:,} tokens, and prompts with their answers have up to"
                    f" {longest:,}. Lower max_prompt or max_tokens."
                )
            if has_pictures and judge.eyes.cut != self._opened.eyes.cut:
                raise UsageError(f"{folder}: the reward model does not look at pictures as {self._opened.found.name} does; leave them out.")

    def judges(self, settings: StudentSettings, pack: int) -> Mapping[str, Judge]:
        """By their folders. settings: of the model that they judge, whose device and numbers they have; pack: tokens computed together."""
        frozen = StudentSettings(method="lora", lora=Lora(rank=1), dtype=settings.dtype, device=settings.device)
        return {folder: _judge(Path(folder), judge, frozen, pack) for folder, judge in self._judges.items()}


def _open(folder: Path, device: str | None, progress: Progress) -> AbstractContextManager[Opened]:
    if not (folder / FILE).is_file():
        raise FileProblem(f"{folder}: is no finished run of herd tune reward: there is no {FILE} in it.")
    return open_tuned(folder, device=device, progress=progress)


def _judge(folder: Path, opened: Opened, frozen: StudentSettings, pack: int) -> Judge:
    """The model with its head. Nothing of it is learned: its updates stay at zero, and are off."""
    student = opened.student(frozen, 0)
    model = RewardModel(student, read_head(folder, opened.cfg.width))

    def judged(asked: Asked) -> list[float]:
        documents = [answer.document for _, answer in asked if answer.document is not None]
        assert len(documents) == len(asked), "answers come with their ids"
        with student.without_adapters():
            return model.judge(documents, pack)

    return judged


def _require_same_words(folder: str, judge: Opened, opened: Opened) -> None:
    """`UsageError` for a reward model with another vocabulary or chat format."""
    name, one, other = opened.found.name, judge.tokenizer, opened.tokenizer
    sizes = [f"{each.vocab_size:,}" for each in (one, other)]
    differs = ""
    if one.vocab_size != other.vocab_size:
        differs = f"its vocabulary has {sizes[0]} tokens, and that of {name} {sizes[1]}"
    elif (token := next((each for each in range(one.vocab_size) if one.token_bytes(each) != other.token_bytes(each)), None)) is not None:
        differs = f"its token {token} is {one.token_bytes(token)!r:.40}, and that of {name} {other.token_bytes(token)!r:.40}"
    elif num_embeddings(judge.cfg) < opened.cfg.vocab_size:
        differs = f"it knows {num_embeddings(judge.cfg):,} ids, and {name} writes {opened.cfg.vocab_size:,}"
    elif _spelled(judge) != _spelled(opened):
        differs = f"its chat format is {_format(judge)}, and that of {name} is {_format(opened)}, which write a conversation differently"
    if differs:
        raise UsageError(
            f"{folder}: the reward model cannot judge answers of {name}: {differs}. It reads the ids that are written;"
            f" tune one from {name}, or from a model of its family: herd tune reward."
        )


def _spelled(opened: Opened) -> list[list[int] | str]:
    """How its chat format writes some conversations; the refusal of what it does not write."""
    chat_format = opened.words.chat_format
    if chat_format is None:
        return []
    found: list[list[int] | str] = []
    for messages in _PROBES:
        try:
            found.append(chat_format.render(messages))
        except UsageError as problem:
            found.append(str(problem))
    return found


def _format(opened: Opened) -> str:
    return "none" if opened.words.chat_format is None else opened.words.chat_format.name
