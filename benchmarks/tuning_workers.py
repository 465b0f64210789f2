"""Ways of tuning a model that `tuning.py` compares, each run in a process of its own: `python tuning_workers.py FORM JOB.json`.

A job is a JSON object: checkpoint (what herd reads), folder (the same weights for transformers, float32), documents and pairs (token ids),
rank, pack, warmup, steps, threads, and (in bfloat16) whether this machine multiplies that fast. The last line on standard output is the
result: seconds and loss of each step after the warm-up, the peak of resident memory, real tokens of a step, and what was computed in.

Every form learns all tokens but the first of each document, LoRA on all seven matrices of a layer, alpha = 2 rank, AdamW.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1e-4
BETA = 0.1
Job = Mapping[str, Any]
Result = dict[str, Any]


def timed(step: Callable[[], float], job: Job) -> Result:
    """Steps before and within the measurement."""
    seconds, losses = [], []
    for _ in range(job["warmup"] + job["steps"]):
        before = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - before)
    return {"seconds": seconds[job["warmup"] :], "losses": losses}


# herd


def herd(job: Job, *, full: bool = False, recompute: bool = False, pairs: bool = False) -> Result:
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
        # Little is kept of a token, so one pack holds the whole step and blocks are decoded as seldom as can be.
        student.run = recomputed
        job = {**job, "pack": sum(map(len, job["documents"]))}
    optimiser = torch.optim.AdamW(student.parameters.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    return timed(preferring(job, student, optimiser) if pairs else learning(job, student, optimiser), job) | {"dtype": str(dtype)}


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
    """What the machine can do at most, under the same conditions as the others: float32 operations per second."""
    from herd.backends.cpu.limits import measure_float32

    return {"operations_per_s": max(measure_float32(job["threads"]) for _ in range(5))}


# peers


def peft_loop(job: Job, *, dtype: str) -> Result:
    """transformers and peft in a loop of one's own: their fastest form. Adapters are of the model's type; no autocast."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=getattr(torch, dtype))
    config = LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    model.train()
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE, weight_decay=0.0)
    longest = max(map(len, job["documents"]))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in job["documents"]])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in job["documents"]])
    labels = tokens.masked_fill(mask == 0, -100)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return timed(step, job) | {"dtype": dtype}


def trl_sft(job: Job, *, bf16: bool, recompute: bool = True, full: bool = False) -> Result:
    """trl's SFTTrainer. Its defaults are bfloat16 under autocast and layers computed twice."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    def make(folder: str) -> Any:
        settings = SFTConfig(
            **common(job, folder), per_device_train_batch_size=len(job["documents"]), bf16=bf16, gradient_checkpointing=recompute
        )
        data = Dataset.from_dict({"input_ids": [list(ids) for ids in job["documents"]]})
        return SFTTrainer(model=job["folder"], args=settings, train_dataset=data, peft_config=None if full else adapters(job))

    return trained(job, make) | {"dtype": "bfloat16" if bf16 else "float32"}


def trl_dpo(job: Job, *, bf16: bool, recompute: bool = True) -> Result:
    """trl's DPOTrainer; the reference is the model without its adapters."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    def make(folder: str) -> Any:
        settings = DPOConfig(
            **common(job, folder), per_device_train_batch_size=len(job["pairs"]), bf16=bf16, gradient_checkpointing=recompute, beta=BETA
        )
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        texts = [{name: tokenizer.decode(ids) for name, ids in pair.items()} for pair in job["pairs"]]
        data = Dataset.from_list(texts)
        return DPOTrainer(model=job["folder"], args=settings, train_dataset=data, processing_class=tokenizer, peft_config=adapters(job))

    return trained(job, make) | {"dtype": "bfloat16" if bf16 else "float32"}


def common(job: Job, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_length": job["max_tokens"],
        "max_steps": job["warmup"] + job["steps"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def adapters(job: Job) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules=TARGETS, task_type="CAUSAL_LM")


def trained(job: Job, make: Callable[[str], Any]) -> Result:
    """Runs a trainer, with a clock at the beginning and the end of each of its steps."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(job["threads"])
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder)
        trainer.add_callback(Clock())
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds[job["warmup"] :], "losses": losses}


FORMS: dict[str, Callable[[Job], Result]] = {
    "peak": peak,
    "herd lora": herd,
    "herd lora recomputed": lambda job: herd(job, recompute=True),
    "herd full": lambda job: herd(job, full=True),
    "herd dpo": lambda job: herd(job, pairs=True),
    "trl lora": lambda job: trl_sft(job, bf16=True),
    "trl lora kept": lambda job: trl_sft(job, bf16=True, recompute=False),
    "trl lora float32": lambda job: trl_sft(job, bf16=False),
    "trl lora float32 kept": lambda job: trl_sft(job, bf16=False, recompute=False),
    "trl full": lambda job: trl_sft(job, bf16=True, full=True),
    "trl full float32 kept": lambda job: trl_sft(job, bf16=False, recompute=False, full=True),
    "trl dpo": lambda job: trl_dpo(job, bf16=True),
    "trl dpo float32 kept": lambda job: trl_dpo(job, bf16=False, recompute=False),
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
