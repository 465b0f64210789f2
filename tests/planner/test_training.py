"""Training: operations, memory and layouts, beside figures that others published or measured."""

from __future__ import annotations

import re

import pytest

from herd.errors import UsageError
from herd.family.catalogue import find
from herd.models.sizes import count_parameters
from herd.planner import step, student
from herd.planner.devices import changed, find_device
from herd.planner.memory import PAGE_TOKENS, STEP_OUTPUTS, STEP_TOKENS
from herd.planner.training import COMPUTE_SHARE, Run, check_run, operations_per_token, parts, reckon_run, step_memory

H100 = find_device("h100")


@pytest.mark.parametrize(
    ("method", "checkpointing", "mflop"),
    [("lora", False, 629), ("lora", True, 869), ("full", False, 869)],
)
def test_operations_of_a_token_are_those_that_were_counted_by_hand(method: str, checkpointing: bool, mflop: float) -> None:
    """SmolLM2-135M at 512 tokens, LoRA of rank 16 on all linear layers; that two of them agree is chance."""
    run = Run(method=method, tokens=1, sequence_tokens=512, checkpointing=checkpointing)
    assert operations_per_token(find("smollm2-135m").config(), run) / 1e6 == pytest.approx(mflop, rel=2e-3)


def test_adapters_have_as_many_weights_as_were_counted() -> None:
    plan = reckon_run(find("smollm2-135m").config(), Run(method="lora", tokens=1, sequence_tokens=512), H100)
    assert plan.trained == pytest.approx(4.88e6, rel=1e-3) and plan.parameters == 134_515_008


def test_pretraining_the_405b_takes_the_published_operations_and_about_its_hours() -> None:
    """3.8e25 operations; 30.84 million H100 hours, of which the assumed share of the peak explains nine tenths."""
    run = Run(method="pretrain", tokens=15_600_000_000_000, sequence_tokens=8192, checkpointing=False)
    plan = reckon_run(find("llama-3.1-405b").config(), run, H100)
    assert plan.operations == pytest.approx(3.8e25, rel=0.05)
    hours = plan.operations / (H100.peaks["bf16"] * COMPUTE_SHARE) / 3600
    assert hours == pytest.approx(30.84e6, rel=0.15)


def test_a_token_of_scout_costs_six_operations_for_each_weight_that_it_meets() -> None:
    run = Run(method="pretrain", tokens=1, sequence_tokens=1, checkpointing=False)
    assert operations_per_token(find("llama-4-scout").config(), run) == pytest.approx(6 * 16_138_408_960, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "run", "devices", "gigabytes", "within"),
    [
        ("llama-3.1-8b", Run(method="lora", tokens=1, sequence_tokens=2048, sequences=2, rank=8), 1, 16.2 * 1.0737, 0.10),
        ("llama-3.1-8b", Run(method="qlora", tokens=1, sequence_tokens=2048, sequences=2, rank=8), 1, 7.4 * 1.0737, 0.12),
        ("llama-3.1-70b", Run(method="lora", tokens=1, sequence_tokens=2048, sequences=2), 8, 27.6 * 1.0737, 0.12),
        ("llama-3.1-405b", Run(method="qlora", tokens=1, sequence_tokens=2048), 8, 44.8, 0.12),
        ("llama-4-scout", Run(method="qlora", tokens=1, sequence_tokens=4096), 1, 64.5, 0.12),
    ],
)
def test_memory_is_about_what_others_measured(model: str, run: Run, devices: int, gigabytes: float, within: float) -> None:
    """torchtune's tables and Axolotl's Scout, whose batch and sequence lengths are only in part known."""
    assert step_memory(find(model).config(), run).on_each(devices) / 1e9 == pytest.approx(gigabytes, rel=within)


def test_full_training_keeps_sixteen_bytes_a_weight() -> None:
    memory = step_memory(find("llama-3.2-1b").config(), Run(method="full", tokens=1, sequence_tokens=128))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * 1_235_814_400
    assert sum(parts(memory).values()) == memory.total


def test_checkpointing_saves_memory_and_costs_operations() -> None:
    config = find("llama-3.1-8b").config()
    kept, again = (Run(method="full", tokens=1, sequence_tokens=4096, checkpointing=each) for each in (False, True))
    assert step_memory(config, again).activations < step_memory(config, kept).activations / 5
    assert operations_per_token(config, again) > 1.2 * operations_per_token(config, kept)


def test_layouts_that_fit_share_activations_where_they_must() -> None:
    run = Run(method="pretrain", tokens=10**12, sequence_tokens=8192, checkpointing=False, batch_tokens=16_000_000)
    plan = reckon_run(find("llama-3.1-405b").config(), run, H100)
    assert plan.layouts and "each layer shared by 8" in plan.layouts[0].how
    assert all(each.per_device <= each.usable for each in plan.layouts)
    assert plan.layouts[0].seconds == pytest.approx(plan.operations / (plan.layouts[0].devices * H100.peaks["bf16"] * COMPUTE_SHARE))


def test_a_batch_limits_how_many_devices_take_part() -> None:
    run = Run(method="lora", tokens=10**6, sequence_tokens=2048, batch_tokens=4096)
    plan = reckon_run(find("llama-3.2-1b").config(), run, H100)
    assert [each.devices for each in plan.layouts if "each" not in each.how.partition("(FSDP)")[2]] == [1, 2]


def test_what_fits_on_no_number_of_devices_says_what_is_needed() -> None:
    """All of it where devices cannot share, and what is left on each where they can."""
    run = Run(method="full", tokens=1, sequence_tokens=2048)
    alone = reckon_run(find("llama-3.1-8b").config(), run, changed(find_device("desktop"), memory="16GB"))
    assert re.fullmatch(r"\d{3}\.\d GB are needed, and 1[34]\.\d GB of its memory can be used", alone.why_not)
    crowd = Run(method="full", tokens=1, sequence_tokens=131072, sequences=512, checkpointing=False)
    assert "on each device, however many share the rest" in reckon_run(find("llama-3.1-405b").config(), crowd, H100).why_not


def test_the_sums_know_what_the_trainer_and_the_engine_do() -> None:
    """Numbers that stand in two places, as the planner may not import what computes."""
    pytest.importorskip("torch")
    from herd.api import tuning
    from herd.backends import base
    from herd.backends.torch import blocks
    from herd.training.student import cross_entropy, joined

    assert (step.CHUNK_BYTES, step.MIN_CHUNK_ROWS) == (cross_entropy.CHUNK_BYTES, cross_entropy.MIN_CHUNK_ROWS)
    assert step.PIECE == blocks.CHUNK_ELEMENTS_ON_CPU
    assert [f"{end}.{name}" for end, names in step.TOGETHER.items() for name in names] == [
        name for names in joined.TOGETHER for name in names
    ]
    assert student.KEPT_SHARE == tuning.KEPT_SHARE
    options = base.BackendOptions()
    assert (base.PAGE_TOKENS, options.max_step_tokens, options.max_step_outputs) == (PAGE_TOKENS, STEP_TOKENS, STEP_OUTPUTS)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("lengths", [(400,), (256, 256), (2048,), (1,)])
def test_attention_works_in_as_much_as_its_kernels_ask_for(lengths: tuple[int, ...], threads: int) -> None:
    """To the byte, but for what parts are filled up to."""
    torch = pytest.importorskip("torch")
    from herd import _core

    tokens, longest, heads, kv_heads, width = sum(lengths), max(lengths), 6, 2, 48
    learning = step.Learning(
        rank=0, blocks=False, tokens=tokens, longest=longest, packs=1, recompute=False, keep_bytes=0, threads=threads
    )  # fmt: skip
    q, k = (torch.zeros(tokens, count, width) for count in (heads, kv_heads))
    for isa in _core.available_isas():
        asked = _core.DocumentAttention(isa, threads, lengths, "past", 0, 0.1).workspace_bytes(q, k, True)
        assert 0 <= asked - step.workspace_bytes(learning, heads * width, kv_heads * width, width) < 128


def test_the_encoder_of_pictures_is_among_the_weights_that_are_learned() -> None:
    """It is float32 as all others; where the data shows no pictures it has no gradients."""
    config = find("llama-3.2-11b-vision").config()
    learning = step.Learning(rank=0, blocks=False, tokens=512, longest=512, packs=2, recompute=True, keep_bytes=0, threads=2)
    found = student.taken(config, learning)
    assert found.weights == 4 * count_parameters(config) and found.gradients < found.weights


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (Run(method="dpo", tokens=1, sequence_tokens=128), "must be one of full, lora"),
        (Run(method="lora", tokens=1, sequence_tokens=10**6), "takes 1 to 131,072"),
        (Run(method="lora", tokens=0, sequence_tokens=128), "--tokens is 0"),
        (Run(method="lora", tokens=1, sequence_tokens=128, rank=0), "--rank is 0"),
        (Run(method="lora", tokens=1, sequence_tokens=128, batch_tokens=64), "already more"),
    ],
)
def test_a_run_that_cannot_be_is_refused(run: Run, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_run(run, find("llama-3.2-1b").config(), "llama-3.2-1b")


def test_a_classifier_has_no_run_to_plan() -> None:
    with pytest.raises(UsageError, match="prompt-guard-86m is a classifier"):
        check_run(Run(method="lora", tokens=10**6, sequence_tokens=512), find("prompt-guard-86m").config(), "prompt-guard-86m")
