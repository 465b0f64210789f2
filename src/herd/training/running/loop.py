"""The loop that every recipe is run by: steps, guards, evaluations, checkpoints, and an end that can be gone on from.

    for each step   the recipe makes gradients -> they are guarded and clipped -> the optimiser changes weights -> the log has a line

A resumed run ends with the bits of one that was never stopped: weights, optimiser and log are taken from the newest whole checkpoint,
and everything else is a function of the seed and the step's number. Before each step torch's own random numbers begin at a place
that these two decide, so that what a layer draws (dropout) is no exception.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.training import gradients
from herd.training.company import ALONE, Company
from herd.training.running.curves import draw
from herd.training.running.metrics import Board, Meter, peak_bytes
from herd.training.running.optim import Optimiser
from herd.training.running.runs import HELD_OUT, Run, State, write_json
from herd.training.running.saving import complete, keep_only, newest, remove_litter, save, write_tensors
from herd.training.running.stopping import stopping
from herd.training.schedules import lr_at
from herd.training.settings.loop import LoopSettings

Figures = Mapping[str, float]


class Recipe(Protocol):
    """What is learned, and how. A step's figures have "loss", and "tokens": how many carried loss (docs/how-to/runs.md lists the names).

    A recipe may also have `batch(number) -> (tensors, values)`, what step `number` is computed from: it is written down when
    the step's loss or gradient is no number.
    """

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """What is trained, by name; the same ones in the same order at every call."""
        ...

    def step(self, number: int) -> Figures:
        """Adds to `.grad` the gradient of step `number`, counted from 0: the mean over all that belongs to the step, in as many pieces
        as it takes. A pure function of weights, data, seed and number."""
        ...

    def evaluate(self, number: int) -> Figures:
        """Figures on held-out data after `number` steps; empty if there is none."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What besides parameters and optimiser the next steps depend on: tensors, and what JSON can hold. Usually nothing."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on from a `state()`."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """How far a run is. `step` steps are done; `figures` are the last step's or, with `is_evaluation`, an evaluation's. `left_s` is None
    until it can be guessed. `note`: something a person should read, else empty."""

    step: int
    steps: int
    figures: Figures
    is_evaluation: bool = False
    tokens_per_s: float = 0.0
    left_s: float | None = None
    peak_bytes: int = 0
    note: str = ""


class End(Enum):
    """How `train` came back. `STOPPED`: by a signal, after everything was saved."""

    FINISHED = "finished"
    STOPPED = "stopped"

    @property
    def is_complete(self) -> bool:
        return self is End.FINISHED


def silent(told: Told) -> None:
    """Nobody watches."""


def train(
    recipe: Recipe,
    run: Run,
    settings: LoopSettings,
    optimiser: Optimiser,
    told: Callable[[Told], None] = silent,
    company: Company = ALONE,
) -> End:
    """Runs a recipe to its last step, from the newest checkpoint of the run if there is one.

    A first SIGINT or SIGTERM lets the step finish, saves, and gives `End.STOPPED`; a second one acts at once. `UsageError` if there is
    nothing to train, and if more than `settings.max_bad_steps` steps in a row have a loss or gradient that is no number.
    """
    return _Loop(recipe, run, settings, optimiser, told, company).run()


class _Loop:
    """One call of `train`."""

    def __init__(
        self, recipe: Recipe, run: Run, settings: LoopSettings, optimiser: Optimiser, told: Callable[[Told], None], company: Company
    ) -> None:
        self._recipe, self._run, self._settings, self._optimiser = recipe, run, settings, optimiser
        self._told, self._company = told, company
        self._parameters = recipe.parameters
        self._meter = Meter()
        self._step = 0  # how many are done
        self._bad_steps = 0  # in a row
        self._best: tuple[int, float] | None = None  # step, value
        self._board: Board | None = None
        self._saved_step = -1
        self._saved_at = time.monotonic()

    def run(self) -> End:
        _check_trainable(self._parameters)
        self._restore()
        state, why = State.FAILED, ""
        if self._settings.tensorboard and self._run.is_first:
            self._board = Board(self._run.folder / "tensorboard", self._step)
        try:
            end = self._steps()
            state = State.FINISHED if end.is_complete else State.STOPPED
        except KeyboardInterrupt:
            state = State.INTERRUPTED
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self._board is not None:
                self._board.close()
            if state is not State.INTERRUPTED:
                self._run.end(state, self._step, why)
        if self._run.is_first:
            draw(self._run.folder)
        return end

    def _steps(self) -> End:
        settings = self._settings
        with stopping() as asked:
            if self._step == 0 and settings.evaluate_every:
                self._evaluate()
            while self._step < settings.steps:
                self._one()
                is_last = self._step == settings.steps
                is_best = bool(settings.evaluate_every) and (is_last or self._step % settings.evaluate_every == 0) and self._evaluate()
                is_asked = not self._company.all_agree(not asked)
                if is_last or is_asked or is_best or self._is_time_to_save():
                    self._save()
                if is_asked and not is_last:
                    self._say(
                        f"{asked.signal_name or 'Asked to stop'}: step {self._step} of {settings.steps} is saved; go on with --resume."
                    )
                    return End.STOPPED
        return End.FINISHED

    def _one(self) -> None:
        """A step: gradients, guards, weights, a line of the log."""
        number, recipe = self._step, self._recipe
        self._meter.begin()
        torch.manual_seed(_seed_of(self._settings.seed, number))
        figures = dict(recipe.step(number))
        self._company.sum_gradients(self._parameters)
        length = self._company.norm(self._parameters)
        is_bad = not (math.isfinite(figures["loss"]) and math.isfinite(length))
        lr = lr_at(self._settings.schedule, number)
        if number == 0 and figures["tokens"] == 0:
            raise UsageError(
                "The first step has 0 tokens that carry loss: there is nothing to learn from. Look at the data with herd tune inspect."
            )
        if is_bad:
            self._keep_bad(number, figures, length)
        elif figures["tokens"] > 0:
            gradients.clip(self._parameters, length, self._settings.clip)
            self._optimiser.step(self._parameters, lr)
        self._bad_steps = self._bad_steps + 1 if is_bad else 0
        gradients.clear(self._parameters)
        self._step = number + 1
        more = {"gradient": length, "lr": lr} | ({"bad": 1} if is_bad else {})
        self._log({**figures, **more, **self._meter.end(figures["tokens"])})
        self._tell(figures)
        if self._bad_steps > self._settings.max_bad_steps:
            self._give_up()

    def _log(self, figures: Figures) -> None:
        self._run.add(self._step, figures)
        if self._board is not None:
            self._board.add(self._step, figures)

    def _evaluate(self) -> bool:
        """Held-out figures; whether they are the best so far and asked to be kept."""
        figures = self._recipe.evaluate(self._step)
        if not figures:
            return False
        self._log({f"{HELD_OUT}{name}": value for name, value in figures.items()})
        self._tell(figures, is_evaluation=True)
        if not self._settings.keep_best:
            return False
        name = self._settings.best.removeprefix("-")
        if name not in figures:
            raise UsageError(f"best is {name!r:.60}, and an evaluation has {', '.join(figures)}.")
        value = -figures[name] if self._settings.best.startswith("-") else figures[name]
        is_best = self._step > 0 and (self._best is None or value < self._best[1])
        if is_best:
            self._best = (self._step, value)
        return is_best

    def _keep_bad(self, number: int, figures: Figures, length: float) -> None:
        """Writes down what the step was computed from."""
        bad = gradients.names_of_bad(self._parameters)
        if not self._run.is_first:
            return
        place = self._run.folder / "bad" / f"step-{number + 1:06d}"
        batch = getattr(self._recipe, "batch", None)
        tensors, values = batch(number) if batch is not None else ({}, {})
        place.mkdir(parents=True, exist_ok=True)
        if tensors:
            write_tensors(place / "batch.safetensors", tensors)
        about = {"step": number + 1, "gradient": repr(length), "figures": {name: repr(value) for name, value in figures.items()}}
        write_json(place / "about.json", about | {"parameters": bad, "batch": values})
        self._say(f"Step {number + 1}: loss {figures['loss']}, gradient {length}: no numbers to learn from. Left out; see {place}.")

    def _give_up(self) -> None:
        """More bad steps in a row than are allowed. The weights are those of the last good one."""
        self._save()
        first = self._step - self._bad_steps + 1
        raise UsageError(
            f"The loss or the gradient was no number at {self._bad_steps} steps in a row ({first} to {self._step}); "
            f"{self._settings.max_bad_steps} are allowed (max_bad_steps). The batches are in {self._run.folder / 'bad'}. Try a lower "
            "learning rate or a longer warm-up, or look at the data."
        )

    def _is_time_to_save(self) -> bool:
        settings = self._settings
        is_step = settings.save_every > 0 and self._step % settings.save_every == 0
        is_late = 0 < settings.save_minutes * 60 <= time.monotonic() - self._saved_at
        return is_step or not self._company.all_agree(not is_late)

    def _save(self) -> None:
        """A checkpoint of now, unless there is one."""
        if self._saved_step == self._step:
            return
        tensors, values = self._recipe.state()
        metrics_bytes, timings_bytes = self._run.num_bytes()
        parts: dict[str, Mapping[str, Tensor]] = {"weights": self._parameters, "optimiser": self._optimiser.state(), "recipe": tensors}
        kept = {part: self._company.kept(tensors) for part, tensors in parts.items()}
        mine = {"bad_steps": self._bad_steps, "best": self._best, "metrics_bytes": metrics_bytes}
        about = {"loop": mine, "recipe": values, "measured": {"timings_bytes": timings_bytes}}
        save(self._run.checkpoints, self._step, kept, about, self._company)
        self._saved_step, self._saved_at = self._step, time.monotonic()
        self._drop_old()

    def _drop_old(self) -> None:
        if not self._run.is_first:
            return
        steps = [saved.step for saved in complete(self._run.checkpoints)][-self._settings.keep_last :]
        best = [self._best[0]] if self._best is not None and self._settings.keep_best else []
        keep_only(self._run.checkpoints, {*steps, *best})

    def _restore(self) -> None:
        """Goes back to the newest whole checkpoint, or to the beginning."""
        if self._run.is_first:
            remove_litter(self._run.checkpoints)
        self._company.all_agree(True)
        for note in self._run.notes:
            self._say(note)
        found = newest(self._run.checkpoints)
        self._company.all_agree(True)
        if found is None:
            self._run.cut(0, 0)
            return
        saved, parts, problems = found
        for problem in problems:
            self._say(f"{problem} Going on from step {saved.step}.")
        mine = saved.values["loop"]
        self._run.cut(mine["metrics_bytes"], saved.values["measured"]["timings_bytes"])
        weights = self._company.placed(parts["weights"], self._parameters)
        _check_same(self._parameters, weights, saved.folder)
        for name, value in weights.items():
            with torch.no_grad():
                self._parameters[name].copy_(value)
        self._optimiser.restore(self._company.placed(parts["optimiser"], self._parameters))
        self._recipe.restore(parts["recipe"], saved.values["recipe"])
        self._step = self._saved_step = saved.step
        self._bad_steps, best = mine["bad_steps"], mine["best"]
        self._best = None if best is None else (best[0], best[1])
        if self._run.is_first:
            keep_only(self._run.checkpoints, range(saved.step + 1))
        self._drop_old()

    def _tell(self, figures: Figures, *, is_evaluation: bool = False, note: str = "") -> None:
        left_s = self._meter.left_s(self._settings.steps - self._step)
        self._told(Told(self._step, self._settings.steps, figures, is_evaluation, self._meter.tokens_per_s, left_s, peak_bytes(), note))

    def _say(self, note: str) -> None:
        self._tell({}, note=note)


def _check_trainable(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    if not any(parameter.requires_grad and parameter.numel() for parameter in parameters.values()):
        raise UsageError("There is nothing to train: no parameter takes a gradient.")


def _check_same(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor], folder: object) -> None:
    """`FileProblem` if a checkpoint is of other parameters."""
    if parameters.keys() != tensors.keys():
        strange = sorted(parameters.keys() ^ tensors.keys())[0]
        raise FileProblem(f"{folder}: has other weights than this run trains, {strange} among them. It is of another model or recipe.")
    for name, parameter in parameters.items():
        value = tensors[name]
        if parameter.shape != value.shape or parameter.dtype != value.dtype:
            raise FileProblem(
                f"{folder}: {name} is {value.dtype} {list(value.shape)}; this run trains {parameter.dtype} {list(parameter.shape)}."
            )


def _seed_of(seed: int, number: int) -> int:
    """A seed for torch's own random numbers, far from those of neighbouring seeds and steps."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "little") >> 1
