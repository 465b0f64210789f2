"""Rejection sampling from settings to a file of conversations, batch by batch: what is drawn is on the disk before the next is begun.

OUT.run/                  while it goes on: settings, digests and lock as of any run (`training.running.runs`)
OUT.run/answers.jsonl     a line for each batch of prompts: how many answers were drawn, what they are worth, and those that are kept
OUT                       at its end, whole; OUT.run is gone then
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.api.reward_models import RewardModels
from herd.api.tuning import open_tuned
from herd.api.tuning_grpo import engine_of, problems_of, room_for
from herd.api.tuning_run import PLAIN, Conduct
from herd.data.account import Account
from herd.data.samples import PictureFile
from herd.errors import UsageError
from herd.files import atomic_write
from herd.text.messages import Image, Message, Text
from herd.text.tools import Tool
from herd.training.recipes.grpo import Problem
from herd.training.recipes.rejection import Chosen, best_of
from herd.training.running.facts import gathered
from herd.training.running.loop import Told
from herd.training.running.runs import Log, Run, State, open_run
from herd.training.running.stopping import stopping
from herd.training.settings.rejection import RejectionSettings
from herd.training.settings.student import StudentSettings
from herd.training.signals.rewards import Rewards
from herd.training.signals.rollouts import EngineSampler

DRAWN = "answers.jsonl"
PACK = 4096
"""Tokens that a reward model reads together where nothing is learned."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What rejection sampling came to: answers kept of prompts asked, how many are not kept by the reason, and the mean reward of all
    answers and of those that were kept; 0 without rewards. Not `is_complete`: it was stopped before the last prompt, and there is no
    file yet."""

    path: Path
    asked: int
    kept: int
    mean_reward: float
    kept_reward: float
    account: Account
    left_out: Mapping[str, int]
    is_complete: bool = True


def reject(settings: RejectionSettings, path: Path, conduct: Conduct = PLAIN) -> Gathered:
    """Draws several answers to each prompt and writes the best of each to a JSONL file of conversations; without rewards every whole answer
    is written (data of a teacher's). A first SIGINT or SIGTERM lets the batch finish; who goes on loses nothing, and whoever was killed
    the batch under way. `UsageError` if the file is there, or was begun and `conduct` does not say to go on."""
    if path.exists():
        raise UsageError(f"{path} is there already; choose another file for the answers.", param="out")
    with ExitStack() as opening:
        opened = opening.enter_context(open_tuned(settings.model, chat_format=settings.chat_format, progress=conduct.progress))
        account = Account()
        models = RewardModels(settings.rewards, opened, opening, conduct.progress)
        room = room_for(opened, settings.max_tokens)
        problems = problems_of(opened, settings.data, account, min(settings.max_prompt, room), settings.rewards)
        longest = max(len(each.prompt.tokens) for each in problems) + settings.max_tokens
        models.check(problems, longest)
        about = {"recipe": "reject", "account": account.as_json(), "base": opened.asked}
        facts = gathered((*account.files, *models.files, *opened.files), opened.checkpoint.digest(), about)
        folder = path.with_name(f"{path.name}.run")
        run = opening.enter_context(open_run(folder, settings, facts, resume=conduct.resume, force=conduct.force))
        rewards = Rewards(settings.rewards, models.judges(StudentSettings(), PACK)) if settings.rewards else None
        drawing = _Drawing(opening, run, problems, conduct, rewards is not None)
        with engine_of(opened, settings.backend, longest, settings.answers * settings.batch) as engine, stopping() as asked:
            for found in best_of(settings, problems, EngineSampler(engine), opened.tokenizer.decode, rewards, drawing.done):
                drawing.add(found)
                if asked and drawing.done < len(problems):
                    break
        made = drawing.made(path, account)
    if made.is_complete:
        shutil.rmtree(folder, ignore_errors=True)
    return made


class _Drawing:
    """The answers so far, those of an earlier process among them. done: how many prompts have theirs on the disk."""

    def __init__(self, opening: ExitStack, run: Run, problems: Sequence[Problem], conduct: Conduct, is_judged: bool) -> None:
        self._run, self._total, self._told, self._is_judged = run, len(problems), conduct.told, is_judged
        self._log = Log(run.folder / DRAWN)
        opening.callback(self._log.close)
        self.done = 0
        self._drawn, self._worth, self._kept_worth, self.kept = 0, 0.0, 0.0, 0
        self._left_out: Counter[str] = Counter()
        num_bytes = 0
        for line, size in _lines(self._log.path):
            self._count(line)
            num_bytes += size
        self._log.cut(num_bytes)
        self._first, self._begun = self.done, time.monotonic()
        for note in run.notes:
            self._told(Told(self.done, self._total, {}, note=note))

    def add(self, found: Sequence[Chosen]) -> None:
        """The answers to the next prompts."""
        prompts = len({id(each.problem) for each in found})
        worth = [each.reward for each in found]
        records = [_record(each, self._run.folder.parent) for each in found if each.is_kept]
        left_out = dict(Counter(each.why_not for each in found if each.why_not))
        line = {"done": self.done + prompts, "drawn": len(found), "worth": sum(worth), "kept": records, "left_out": left_out}
        self._log.add(line)
        self._log.sync()
        self._count(line)
        left_s = (time.monotonic() - self._begun) / (self.done - self._first) * (self._total - self.done)
        judged = {"reward": sum(worth) / len(worth)} if self._is_judged else {}
        self._told(Told(self.done, self._total, {"answers": float(self.kept), **judged}, left_s=left_s))

    def made(self, path: Path, account: Account) -> Gathered:
        """What it came to; the file is written when all prompts have their answers."""
        is_complete = self.done == self._total
        if is_complete:
            with atomic_write(path) as file:
                for line, _ in _lines(self._log.path):
                    for record in line["kept"]:
                        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._run.end(State.FINISHED if is_complete else State.STOPPED, self.done)
        mean, best = self._worth / max(1, self._drawn), self._kept_worth / max(1, self.kept)
        return Gathered(path, self.done, self.kept, mean, best, account, dict(self._left_out), is_complete)

    def _count(self, line: Mapping[str, Any]) -> None:
        self.done, self._drawn, self.kept = line["done"], self._drawn + line["drawn"], self.kept + len(line["kept"])
        self._worth += math.nan if line["worth"] is None else line["worth"]
        self._left_out.update(line["left_out"])
        self._kept_worth += sum(record["reward"] for record in line["kept"])


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The batches that are whole, and the bytes of each."""
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return
            if not text.endswith(b"\n"):
                return
            yield line, len(text)


def _record(chosen: Chosen, folder: Path) -> dict[str, Any]:
    """A prompt with its answer, as a conversation to learn from that lies in `folder`."""
    task = chosen.problem.task
    offered = [dict(tool.written) if isinstance(tool, Tool) else tool.value for tool in task.tools]
    messages = [*(_message(message, folder) for message in task.messages), {"role": "assistant", "content": chosen.text}]
    return {"messages": messages, **({"tools": offered} if offered else {}), "reward": chosen.reward}


def _message(message: Message, folder: Path) -> dict[str, Any]:
    """In the shape `messages` of training data."""
    found: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.images:
        found["content"] = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "image": _picture(part, folder)}
            for part in message.parts
        ]
    if message.tool_calls:
        calls = [(call.id, {"name": call.name, "arguments": dict(call.arguments)}) for call in message.tool_calls]
        found["tool_calls"] = [{"id": number, "type": "function", "function": call} for number, call in calls]
    said = {"tool_call_id": message.tool_call_id, "name": message.name}
    return found | {name: value for name, value in said.items() if value is not None}


def _picture(image: Image, folder: Path) -> str:
    """By its name where it lies in the folder, as records name pictures; else itself."""
    if not isinstance(image, PictureFile):
        return str(image.source)
    if (path := image.path.resolve()).is_relative_to(folder.resolve()):
        return path.relative_to(folder.resolve()).as_posix()
    return f"data:{mimetypes.guess_type(path.name)[0] or 'image/png'};base64,{base64.b64encode(image.source).decode()}"
