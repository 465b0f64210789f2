"""Ways of tuning a model that `tuning.py` compares, each run in a process of its own: `python tuning_workers.py FORM JOB.json`.

A job is a JSON object: checkpoint (what herd reads), folder (the same weights for transformers), documents and pairs (token ids), prompts
(each as text and as token ids), answers (to a prompt), answer_tokens, max_tokens, rank, pack, warmup, steps and threads. The last line on
standard output is the result: the seconds of each step after the warm-up, the losses of all, the peak of resident memory, and what was
computed in; where answers are drawn, also their tokens and the seconds that drawing them took, of the steps that count.

Every form learns all tokens but the first of each document, LoRA on all seven matrices of a layer, alpha = 2 rank, AdamW. Those that draw
answers take the loss of DAPO without a reference, one step from each batch of answers, at temperature 1 from the whole distribution.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tuning_peers import peft_loop, trl_dpo, trl_grpo, trl_sft
from tuning_steps import BETA, LEARNING_RATE, Job, Result, clocked, drawn, timed, worth


def herd(job: Job, *, full: bool = False, recompute: bool = False, pairs: bool = False) -> Result:
    if recompute:
        # Little is kept of a token, so one pack holds the whole step and blocks are decoded as seldom as can be.
        job = {**job, "pack": sum(map(len, job["documents"]))}
    student, optimiser = learner(job, full=full, recompute=recompute)
    return timed(preferring(job, student, optimiser) if pairs else learning(job, student, optimiser), job) | {"dtype": str(student.dtype)}


def learner(job: Job, *, full: bool = False, recompute: bool = False) -> tuple[Any, Any]:
    """A student and its optimiser."""
    import torch

    from herd import _core
    from herd.checkpoints import open_checkpoint
    from herd.training.settings.lora import Lora
    from herd.training.student.checkpointing import recomputed
    from herd.training.student.computing import fastest_dtype
    from herd.training.student.model import Student

    _core.open_tensor_memory()
    torch.set_num_threads(job["threads"])
    checkpoint = open_checkpoint(Path(job["checkpoint"]))
    dtype = fastest_dtype(torch.device("cpu"))
    lora = None if full else Lora(rank=job["rank"], alpha=2 * job["rank"])
    student = Student(checkpoint.config, checkpoint.leaf, dtype=dtype, lora=lora, keep_bytes=0 if recompute and not full else 1 << 40)
    if recompute:
        student.run = recomputed
    return student, torch.optim.AdamW(student.parameters.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def learning(job: Job, student: Any, optimiser: Any) -> Callable[[], float]:
    import torch

    from herd.training.student.batches import Document, batch_of

    documents = [Document(tuple(ids), (0.0, *[1.0] * (len(ids) - 1))) for ids in job["documents"]]
    batches = [batch_of(pack) for pack in packs(documents, job["pack"], lambda document: len(document.tokens))]
    total = sum(batch.num_targets for batch in batches)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            nll, _ = student.nll(batch)
            torch.autograd.backward(nll / total)
            loss += nll.item() / total
        optimiser.step()
        return loss

    return step


def preferring(job: Job, student: Any, optimiser: Any) -> Callable[[], float]:
    import torch

    from herd.training.signals.losses import document_sums, dpo
    from herd.training.student.batches import Document, batch_of

    def both(pair: Mapping[str, list[int]]) -> list[Document]:
        prompt = pair["prompt"]
        answers = (pair["chosen"], pair["rejected"])
        return [Document((*prompt, *answer), (*[0.0] * len(prompt), *[1.0] * len(answer))) for answer in answers]

    groups = packs([both(pair) for pair in job["pairs"]], job["pack"], lambda two: sum(len(each.tokens) for each in two))
    batches = [batch_of([each for two in group for each in two]) for group in groups]

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            count = len(batch.lengths)
            with torch.no_grad(), student.without_adapters():
                before_N = document_sums(student.logprobs(batch), batch.document_R, count)
            gained_N = document_sums(student.logprobs(batch), batch.document_R, count) - before_N
            mean = dpo(gained_N[0::2], gained_N[1::2], BETA).sum() / len(job["pairs"])
            torch.autograd.backward(mean)
            loss += mean.item()
        optimiser.step()
        return loss

    return step


def herd_grpo(job: Job) -> Result:
    """The recipe of `herd tune grpo`, with answers from an engine as it opens one, but that nothing ends an answer early."""
    from herd.api.loading import load
    from herd.training.recipes.grpo import Grpo
    from herd.training.settings.grpo import PolicyLoss, Rollouts
    from herd.training.signals.rewards import one_by_one
    from herd.training.signals.rollouts import EngineSampler

    student, optimiser = learner(job)
    problems = problems_of(job)
    longest = max(len(each.prompt.tokens) for each in problems) + job["answer_tokens"]
    model = load(job["checkpoint"], threads=job["threads"], activations="float32", context=longest, parallel=len(problems) * job["answers"])
    model.engine.stop_ids = frozenset()
    sampler: Any = EngineSampler(model.engine)
    pushing: list[float] = []
    drawing: list[float] = []
    sampler.push, sampler.draw = clocked(sampler.push, pushing), clocked(sampler.draw, drawing)
    recipe = Grpo(
        student=student,
        sampler=sampler,
        learned=problems,
        held_out=(),
        reward=one_by_one(lambda _, answer: worth(answer.text)),
        decode=model.tokenizer.decode,
        loss=PolicyLoss(),
        rollouts=Rollouts(prompts=len(problems), answers=job["answers"], max_tokens=job["answer_tokens"], redraw=0),
        pack=job["pack"],
        seed=1,
    )
    tokens: list[float] = []
    result = timed(reinforcing(recipe, optimiser, tokens), job) | {"dtype": str(student.dtype)}
    return result | drawn(job, tokens, [push + draw for push, draw in zip(pushing, drawing, strict=True)])


def problems_of(job: Job) -> list[Any]:
    from herd.data.reading import Place
    from herd.data.samples import Task
    from herd.text.messages import Message, Role
    from herd.training.recipes.grpo import Problem
    from herd.training.signals.rollouts import Prompt

    tasks = [Task(Place(Path("prompts"), at), (Message(Role.USER, each["text"]),)) for at, each in enumerate(job["prompts"], start=1)]
    return [Problem(task, Prompt(tuple(each["tokens"]))) for task, each in zip(tasks, job["prompts"], strict=True)]


def reinforcing(recipe: Any, optimiser: Any, tokens: list[float]) -> Callable[[], float]:
    """`tokens` gets those of the answers of each step."""
    numbers = itertools.count()

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        figures = recipe.step(next(numbers))
        optimiser.step()
        assert figures["informative"] == 1, "every prompt teaches something"
        tokens.append(figures["tokens"])
        return float(figures["loss"])

    return step


def packs(things: Sequence[Any], budget: int, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Things in groups of at most `budget` together, largest first, each into the first group with room."""
    groups: list[list[Any]] = []
    for thing in sorted(things, key=size, reverse=True):
        room = (group for group in groups if sum(map(size, group)) + size(thing) <= budget)
        group = next(room, None)
        if group is None:
            groups.append([thing])
        else:
            group.append(thing)
    yield from groups


def peak(job: Job) -> Result:
    """What the machine can do at most, under the same conditions as the others: operations per second in each type. bfloat16 is multiplied
    in float32 where there is no instruction for it."""
    from herd.backends.cpu.limits import measure_bf16, measure_float32, multiplies_bf16

    kinds = {"float32": measure_float32, "bfloat16": measure_bf16 if multiplies_bf16() else measure_float32}
    return {"operations_per_s": {dtype: max(measure(job["threads"]) for _ in range(5)) for dtype, measure in kinds.items()}}


FORMS: dict[str, Callable[[Job], Result]] = {
    "peak": peak,
    "herd lora": herd,
    "herd lora recomputed": lambda job: herd(job, recompute=True),
    "herd full": lambda job: herd(job, full=True),
    "herd dpo": lambda job: herd(job, pairs=True),
    "herd grpo": herd_grpo,
    "trl lora": lambda job: trl_sft(job, bf16=True),
    "trl lora kept": lambda job: trl_sft(job, bf16=True, recompute=False),
    "trl lora float32": lambda job: trl_sft(job, bf16=False),
    "trl lora float32 kept": lambda job: trl_sft(job, bf16=False, recompute=False),
    "trl full": lambda job: trl_sft(job, bf16=True, full=True),
    "trl full float32 kept": lambda job: trl_sft(job, bf16=False, recompute=False, full=True),
    "trl dpo": lambda job: trl_dpo(job, bf16=True),
    "trl dpo float32 kept": lambda job: trl_dpo(job, bf16=False, recompute=False),
    "trl grpo": lambda job: trl_grpo(job, bf16=True),
    "trl grpo float32 kept": lambda job: trl_grpo(job, bf16=False, recompute=False),
    "peft loop bfloat16": lambda job: peft_loop(job, dtype="bfloat16"),
    "peft loop float32": lambda job: peft_loop(job, dtype="float32"),
}


def main() -> None:
    form, path = sys.argv[1:]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    result = FORMS[form](job)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
