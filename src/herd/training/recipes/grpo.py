"""Online reinforcement learning, from rewards that a program can check or a model has learned: GRPO (arXiv 2402.03300), Dr. GRPO, DAPO.

    weights -> engine -> answers to some prompts, several to each -> rewards -> each answer against the others to its prompt
            -> gradient that makes answers likelier that were better than the others        (one step, then again)

Prompts whose answers are all worth the same teach nothing and are drawn again (`redraw`). Every `filter_every` steps all prompts are
tried, and those that have become too easy are left out until the next time, as in Llama 4's recipe. The engine's log-probabilities are
compared with the trainer's on every token ("gap", "gap_most" in the log), and what they differ by is made good (`sampler_most`).

Figures: "reward" before anything is taken from it, "length" in tokens, "cut" the share of answers cut at the longest, "informative" the
share of prompts that taught something, "clipped" of tokens outside the trusted range, "kept" how many prompts are in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from herd.data.order import index_at
from herd.data.samples import Task
from herd.errors import UsageError
from herd.training.company import apart
from herd.training.recipes.packed import InPacks
from herd.training.recipes.preferences import Reference
from herd.training.running.loop import Figures
from herd.training.settings.grpo import PolicyLoss, Rollouts
from herd.training.signals import losses
from herd.training.signals.rewards import Answer, Judge
from herd.training.signals.rollouts import Decode, Drawn, Gap, Prompt, Sampler, behind_prompt, seed_of, seeds_of
from herd.training.student.batches import Batch, Document, batch_of


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt and what its answers are checked by."""

    task: Task
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Learned:
    """An answer behind its prompt, and what its tokens count: `advantage` times `scale` each. `sampler`: log p by the engine; `old`: by
    the trainer before the first step that learns from it, or empty."""

    document: Document
    advantage: float
    scale: float
    sampler: tuple[float, ...]
    old: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.document.tokens)


@dataclass(kw_only=True)
class Grpo(InPacks[Problem]):
    """A recipe for `loop.train`.

    reward      what answers to tasks are worth; best: the most that one can be
    decode      token ids of an answer -> its text
    reference   of the model as it was; made if `loss.kl` asks for it and there is none
    """

    sampler: Sampler
    reward: Judge
    decode: Decode
    loss: PolicyLoss
    rollouts: Rollouts
    best: float = 1.0
    reference: Reference | None = None
    _position: int = 0
    _kept: list[int] = field(default_factory=list)
    _answers: list[Learned] = field(default_factory=list)
    _told: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss.kl and self.reference is None:
            self.reference = Reference(self.student)
        if self.rollouts.reuse > 1 and any(problem.prompt.pictures for problem in self.learned):
            raise UsageError("Answers to pictures cannot be learned from more than once; set rollouts.reuse = 1.")
        self._kept = self._kept or list(range(len(self.learned)))

    def step(self, number: int) -> Figures:
        turn = number % self.rollouts.reuse
        gap = Gap()
        if turn == 0 or not self._answers:
            self._gather(number)
            turn = 0
        tokens = sum(len(each.sampler) for each in self._answers if each.scale)
        if not (number or tokens):
            raise UsageError(
                f"All {len(self._answers)} answers of the first step were cut at {self.rollouts.max_tokens} tokens, and rollouts.drop_cut "
                "leaves such out, so nothing is left to learn from. Let answers be longer (--max-tokens), or set rollouts.drop_cut = false."
            )
        total = self.learn(number, self._answers, _size, lambda group: self._measured(group, gap if turn == 0 else None))
        figures = {"loss": total["loss"], "tokens": float(tokens), "clipped": total["clipped"] / max(1, tokens), **self._told}
        if self.loss.kl:
            figures["kl"] = total["kl"] / max(1, tokens)
        return figures | (gap.figures(total, self.company) if turn == 0 else {})

    def evaluate(self, number: int) -> Figures:
        """The most likely answers to held-out prompts."""
        if not self.held_out:
            return {}
        self.sampler.push(self.student)
        drawn, rewards = zip(*(group[0] for group in self._draw(self.held_out, 1, 0.0, 0)), strict=True)
        reward = sum(rewards) / len(rewards)
        return {"loss": -reward, "reward": reward, **_sizes(drawn)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        values: dict[str, Any] = {"position": self._position, "kept": self._kept, "told": self._told}
        if self.rollouts.reuse == 1:
            return {}, values
        prompts = [len(each.document.tokens) - len(each.sampler) for each in self._answers]
        tensors = {
            "tokens": torch.tensor([token for each in self._answers for token in each.document.tokens], dtype=torch.int64),
            "prompts": torch.tensor(prompts, dtype=torch.int64),
            "answers": torch.tensor([len(each.sampler) for each in self._answers], dtype=torch.int64),
            "advantages": torch.tensor([each.advantage for each in self._answers], dtype=torch.float64),
            "scales": torch.tensor([each.scale for each in self._answers], dtype=torch.float64),
            "sampler": torch.tensor([x for each in self._answers for x in each.sampler], dtype=torch.float64),
            "old": torch.tensor([x for each in self._answers for x in each.old], dtype=torch.float64),
        }
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._position, self._kept, self._told = values["position"], list(values["kept"]), dict(values["told"])
        self._answers = []
        if not tensors:
            return
        tokens, sampler, old = (tensors[name].tolist() for name in ("tokens", "sampler", "old"))
        at, row = 0, 0
        listed = (tensors[name].tolist() for name in ("prompts", "answers", "advantages", "scales"))
        for prompt, answer, advantage, scale in zip(*listed, strict=True):
            rows = slice(row, row + answer)
            drawn = Drawn(tuple(tokens[at + prompt : at + prompt + answer]), tuple(sampler[rows]), False)
            document = behind_prompt(Prompt(tuple(tokens[at : at + prompt])), drawn)
            self._answers.append(Learned(document, advantage, scale, drawn.logprobs, tuple(old[rows])))
            at, row = at + prompt + answer, row + answer

    def _gather(self, number: int) -> None:
        """Draws and judges the answers that the next `reuse` steps learn from."""
        self.sampler.push(self.student)
        settings = self.rollouts
        if settings.filter_every and number and number % settings.filter_every == 0:
            self._filter(number)
        groups: list[tuple[Problem, list[Drawn]]] = []
        worth: list[list[float]] = []
        seen = informative = 0
        drawn_all: list[Drawn] = []
        rewards_all: list[float] = []
        for attempt in range(1 + settings.redraw):
            wanted = settings.prompts - informative
            problems = [self.learned[self._next()] for _ in range(wanted)]
            drawn = self._draw(
                problems, settings.answers, settings.temperature, seed_of(self.seed, number * (settings.redraw + 1) + attempt)
            )
            for problem, judged in zip(problems, drawn, strict=True):
                answers, rewards = [each for each, _ in judged], [reward for _, reward in judged]
                rewards_all += rewards
                drawn_all += answers
                shaped = torch.tensor(rewards, dtype=torch.float64) + self._penalty(answers)
                is_good = bool(losses.is_informative(shaped[None])[0])
                seen, informative = seen + 1, informative + is_good
                if is_good:
                    groups.append((problem, answers))
                    worth.append(shaped.tolist())
                elif not groups and seen == 1:
                    spare = (problem, answers), shaped.tolist()
            if informative == settings.prompts:
                break
        if not groups:
            groups, worth = [spare[0]], [spare[1]]
        self._answers = self._with_old(self._weighed(groups, worth))
        figures = {"reward": sum(rewards_all) / len(rewards_all), "informative": informative / seen, "kept": float(len(self._kept))}
        told = {**figures, **_sizes(drawn_all)}
        self._told = {name: told[name] for name in sorted(told)}  # in the order in which a checkpoint gives them back

    def _weighed(self, groups: Sequence[tuple[Problem, list[Drawn]]], worth: Sequence[Sequence[float]]) -> list[Learned]:
        """Answers with their advantages, and with what a token counts so that the sum over all is the mean that is asked for."""
        gains_GK = losses.advantages(torch.tensor(worth, dtype=torch.float64), self.loss.scale).tolist()
        flat = [
            (problem.prompt, answer, gain)
            for (problem, answers), gains in zip(groups, gains_GK, strict=True)
            for answer, gain in zip(answers, gains, strict=True)
        ]
        lengths = torch.tensor([len(answer.tokens) for _, answer, _ in flat])
        counts = torch.tensor([not (self.rollouts.drop_cut and answer.is_cut) for _, answer, _ in flat])
        scales = losses.token_weights(lengths, self.loss.over, self.rollouts.max_tokens, counts).tolist()
        return [
            Learned(behind_prompt(prompt, answer), gain, scale, answer.logprobs)
            for (prompt, answer, gain), scale in zip(flat, scales, strict=True)
        ]

    @torch.no_grad()
    def _with_old(self, answers: list[Learned]) -> list[Learned]:
        """With the trainer's log-probabilities of now, if more than one step learns from them."""
        if self.rollouts.reuse == 1:
            return answers
        self.student.rest()

        def old(packs: Sequence[list[Learned]]) -> list[list[float]]:
            batches = [batch_of([each.document for each in pack], self.student.device) for pack in packs]
            return [self._logprobs(self.student.hidden(batch), batch).to(torch.float64).tolist() for batch in batches]

        packs = self.packs(answers, _size)
        found: list[Learned] = []
        for pack, logprobs in zip(packs, map(iter, apart(self.company, packs, old)), strict=True):
            found += [replace(each, old=tuple(islice(logprobs, len(each.sampler)))) for each in pack]
        return found

    def _measured(self, group: Sequence[Learned], gap: Gap | None) -> tuple[Tensor, dict[str, float]]:
        """The part of a step's loss that some answers make, and sums over their tokens."""
        loss = self.loss
        batch = batch_of([each.document for each in group], self.student.device)
        hidden_RD = self.student.hidden(batch)
        now_R = self._logprobs(hidden_RD, batch)
        sampler_R = now_R.new_tensor([x for each in group for x in each.sampler])
        old_R = now_R.new_tensor([x for each in group for x in each.old]) if group[0].old else now_R.detach()
        gain_R = now_R.new_tensor([each.advantage for each in group])[batch.document_R]
        scale_R = now_R.new_tensor([each.scale for each in group])[batch.document_R]
        value_R = losses.clipped_gain(now_R, old_R, gain_R, loss.clip_low, loss.clip_high)
        is_plain = self.rollouts.temperature == 1
        if loss.sampler_most and is_plain:
            value_R = value_R * losses.sampler_weight(old_R, sampler_R, loss.sampler_most)
        kl_R = torch.zeros_like(now_R)
        if loss.kl:
            kl_R = losses.k3(now_R, self._before(batch))
            value_R = value_R + loss.kl * kl_R
        differing: dict[str, float] = {}
        if gap is not None:
            with torch.no_grad():
                differing = gap.add(now_R if is_plain else self.student.logprobs_of(hidden_RD.detach(), batch.targets_R), sampler_R)
        total = (value_R * scale_R).sum()
        counts_R = scale_R > 0
        clipped_R = losses.is_clipped(now_R.detach(), old_R, gain_R, loss.clip_low, loss.clip_high)[counts_R]
        figures = {"loss": float(total.detach()), "clipped": float(clipped_R.sum()), "kl": float(kl_R.detach()[counts_R].sum())}
        return total, {**figures, **differing}

    def _logprobs(self, hidden_RD: Tensor, batch: Batch) -> Tensor:
        """At the temperature of drawing: logits are a product of the last values, so these can be divided instead."""
        temperature = self.rollouts.temperature
        return self.student.logprobs_of(hidden_RD if temperature == 1 else hidden_RD / temperature, batch.targets_R)

    @torch.no_grad()
    def _before(self, batch: Batch) -> Tensor:
        """log π_ref of each row."""
        assert self.reference is not None
        with self.reference.policy() as student:
            hidden_RD = student.hidden(batch)
            temperature = self.rollouts.temperature
            return student.logprobs_of(hidden_RD if temperature == 1 else hidden_RD / temperature, batch.targets_R)

    def _filter(self, number: int) -> None:
        """Tries all prompts and keeps the medium and hard ones; all of them, if there are none."""
        settings = self.rollouts
        drawn = self._draw(self.learned, settings.answers, settings.temperature, seed_of(self.seed, -number))
        kept = []
        for index, judged in enumerate(drawn):
            share = sum(reward for _, reward in judged) / (len(judged) * self.best)
            if settings.filter_least <= share <= settings.filter_most:
                kept.append(index)
        self._kept = kept or list(range(len(self.learned)))

    def _next(self) -> int:
        """The next prompt, in an order that another seed changes."""
        found = self._kept[index_at(self.seed, len(self._kept), self._position)]
        self._position += 1
        return found

    def _draw(self, problems: Sequence[Problem], count: int, temperature: float, seed: int) -> list[list[tuple[Drawn, float]]]:
        """Answers to each problem, and what they are worth. Each process draws and judges some, and has all."""

        def judged(mine: Sequence[tuple[Problem, int]]) -> list[list[tuple[Any, float]]]:
            prompts, seeds = [problem.prompt for problem, _ in mine], [seed for _, seed in mine]
            drawn = self.sampler.draw(prompts, count, max_tokens=self.rollouts.max_tokens, temperature=temperature, seeds=seeds)
            worth = iter(self.reward(asked([problem for problem, _ in mine], drawn, self.decode)))
            return [[(each.told(), next(worth)) for each in answers] for answers in drawn]

        told = apart(self.company, list(zip(problems, seeds_of(seed, len(problems)), strict=True)), judged)
        return [[(Drawn.heard(each), worth) for each, worth in answers] for answers in told]

    def _penalty(self, answers: Sequence[Drawn]) -> Tensor:
        lengths = torch.tensor([len(each.tokens) for each in answers])
        if not self.rollouts.overlong:
            return torch.zeros(len(answers), dtype=torch.float64)
        return losses.overlong_penalty(lengths, self.rollouts.max_tokens, self.rollouts.overlong).to(torch.float64)


def asked(problems: Sequence[Problem], drawn: Sequence[Sequence[Drawn]], decode: Decode) -> list[tuple[Task, Answer]]:
    """All answers to some problems as a judge looks at them, those to one problem together."""
    return [
        (problem.task, Answer(decode(each.tokens), len(each.tokens), each.is_cut, behind_prompt(problem.prompt, each)))
        for problem, answers in zip(problems, drawn, strict=True)
        for each in answers
    ]


def _size(each: Learned) -> int:
    return each.num_tokens


def _sizes(drawn: Sequence[Drawn]) -> dict[str, float]:
    return {
        "length": sum(len(each.tokens) for each in drawn) / len(drawn),
        "cut": sum(each.is_cut for each in drawn) / len(drawn),
    }
