"""How others tune the model of a job: trl and peft, in the forms that `tuning_workers.py` names."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

from tuning_steps import BETA, LEARNING_RATE, Job, Result, clocked, drawn, timed, worth

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
            **common(job, folder),
            per_device_train_batch_size=len(job["documents"]),
            max_length=job["max_tokens"],
            bf16=bf16,
            gradient_checkpointing=recompute,
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
            **common(job, folder),
            per_device_train_batch_size=len(job["pairs"]),
            max_length=job["max_tokens"],
            bf16=bf16,
            gradient_checkpointing=recompute,
            beta=BETA,
        )
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        texts = [{name: tokenizer.decode(ids) for name, ids in pair.items()} for pair in job["pairs"]]
        data = Dataset.from_list(texts)
        return DPOTrainer(model=job["folder"], args=settings, train_dataset=data, processing_class=tokenizer, peft_config=adapters(job))

    return trained(job, make) | {"dtype": "bfloat16" if bf16 else "float32"}


def trl_grpo(job: Job, *, bf16: bool, recompute: bool = True) -> Result:
    """trl's GRPOTrainer, which draws answers by transformers."""
    drawing: list[float] = []
    made: list[Any] = []

    def make(folder: str) -> Any:
        trainer = grpo_trainer(job, folder, bf16=bf16, gradient_checkpointing=recompute)
        trainer.model.generate = clocked(trainer.model.generate, drawing)
        made.append(trainer)
        return trainer

    result = trained(job, make) | {"dtype": "bfloat16" if bf16 else "float32"}
    logged = [entry for entry in made[0].state.log_history if "completions/mean_length" in entry]
    assert all(entry["frac_reward_zero_std"] == 0 for entry in logged), "every prompt teaches something"
    answers = len(job["prompts"]) * job["answers"]
    return result | drawn(job, [entry["completions/mean_length"] * answers for entry in logged], drawing)


def grpo_trainer(job: Job, folder: str, **more: Any) -> Any:
    """`min_new_tokens` keeps it from ending an answer early."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def rewards(completions: list[str], **_: Any) -> list[float | None]:
        return [worth(each) for each in completions]

    settings = GRPOConfig(
        **common(job, folder),
        per_device_train_batch_size=len(job["prompts"]) * job["answers"],
        num_generations=job["answers"],
        max_completion_length=job["answer_tokens"],
        generation_kwargs={"min_new_tokens": job["answer_tokens"]},
        temperature=1.0,
        **more,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(job["folder"], padding_side="left")
    for each in job["prompts"]:
        assert tokenizer(each["text"])["input_ids"] == each["tokens"], "both forms read the same prompts"
    data = Dataset.from_list([{"prompt": each["text"]} for each in job["prompts"]])
    return GRPOTrainer(
        model=job["folder"],
        reward_funcs=rewards,
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapters(job),
    )


def common(job: Job, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
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
