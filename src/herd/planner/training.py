"""What training takes: memory of a step by part, operations and time of a token budget, and how devices can share it.

On GPUs mixed precision as usual: weights and gradients in 16 bits, AdamW with float32 weights and moments. On processors what herd's
own trainer keeps (`student.py`). Methods: `full` (all weights), `pretrain` (the same, from nothing), `lora` (a small pair of matrices
beside each frozen one) and `qlora` (those frozen in 4 bits).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from herd.dtypes import BF16, F16, Q4_0
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of, classifying
from herd.models.sizes import count_parameters, layer_widths, part_of
from herd.models.weights import Kind, TensorSpec, stored_bytes
from herd.planner import step, student
from herd.planner.devices import Device
from herd.planner.formats import Format
from herd.planner.memory import USABLE_SHARE, runtime_bytes
from herd.planner.speed import Work
from herd.records import dataclass

METHODS = ("full", "lora", "qlora", "pretrain")
COMPUTE_SHARE = 0.40
LOGITS_CHUNK = 512
ADAM_BYTES = 12
THIS_MACHINE = "this-machine"
THREADS_ELSEWHERE = 8
"""Each takes a block of attention's scores: with texts of 2,048 tokens 2 MB, so that little depends on it."""
PROCESSOR_SHARE = 0.48
PROCESSOR_ASSUMED = (
    f"a step computes at {PROCESSOR_SHARE:.0%} of the measured float32 peak; benchmarks/tuning.py found 44 to 52 %",
    "weights, gradients, both moments and activations are float32, as herd trains on processors without products in bfloat16",
    f"as many threads compute as this process may run at a time; of a processor that is not this one, {THREADS_ELSEWHERE}",
    "a frozen base stays as it is multiplied where a quarter of the free memory holds it",
    "all parts are of the moment that takes most: gradients of one pack come while its activations go, those of earlier packs stay",
    "tensors lie in pages of their own (Linux with glibc): a thirty-second more than is alive may be resident; elsewhere more",
)
ASSUMED = (
    f"a step computes at {COMPUTE_SHARE:.0%} of the dense 16-bit peak; Meta reports 38 to 43 % for Llama 3.1 405B on up to 16,384 H100",
    "AdamW keeps 12 bytes for each trained weight: a float32 copy and two float32 moments; gradients are 16-bit",
    "the backward pass costs twice the forward pass, of frozen weights once; checkpointing computes each layer's forward again",
    "attention is computed in blocks: its scores are never kept, and its backward costs 2.5 times its forward",
    f"logits exist for {LOGITS_CHUNK} tokens at a time, in float32, with their gradient",
    "sharded devices hold whole weights of one layer at a time, gathered in 16 bits",
    "GPUs: 1.5 GB of runtime each, 92 % of the memory usable",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run. `sequences` of `sequence_tokens` are in one device's memory at once; `batch_tokens` go into a step over all
    devices; `tokens` in all. `rank` of LoRA. `checkpointing`: activations of a layer are computed again when needed."""

    method: str
    tokens: int
    sequence_tokens: int
    sequences: int = 1
    batch_tokens: int | None = None
    rank: int = 16
    checkpointing: bool = True


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one step. What is shared out over devices (`weights`, `gradients`, `optimizer`) and what each device has of its own."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    products: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.products

    def on_each(self, devices: int, tensor: int = 1, context: int = 1) -> int:
        """With weights and states sharded over so many devices (FSDP), of which `tensor` share each layer and `context` each
        sequence: they share its activations. Alone, nothing needs gathering."""
        shared = (self.weights + self.gradients + self.optimizer) / devices
        gathered = self.gathered / tensor if devices > tensor else 0
        return int(shared + (self.activations + self.products) / (tensor * context) + gathered)


@dataclass(frozen=True, slots=True)
class Sharing:
    """One way to run: so many devices; `per_device` bytes of `usable`; seconds for the budget; tokens per second."""

    devices: int
    how: str
    per_device: int
    usable: int
    seconds: float | None
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """`trained` weights of `parameters`; operations for a token and for the budget; the layouts that fit on the device, fewest
    first, or none with `why_not`."""

    run: Run
    parameters: int
    trained: int
    memory: StepMemory
    operations_per_token: float
    operations: float
    layouts: tuple[Sharing, ...]
    why_not: str


def check_run(run: Run, config: Config, name: str) -> None:
    """`UsageError` for a run that cannot be."""
    if classifying(config) is not None:
        raise UsageError(f"{name} is a classifier of whole texts; language models are tuned here, so there is no run to plan.")
    if run.method not in METHODS:
        raise UsageError(f"The method is {run.method!r}; it must be one of {', '.join(METHODS)}.")
    if not 1 <= run.sequence_tokens <= config.context_length:
        raise UsageError(f"--sequence is {run.sequence_tokens:,}; {name} takes 1 to {config.context_length:,} tokens.")
    for what, value in (("--tokens", run.tokens), ("--sequences", run.sequences), ("--rank", run.rank)):
        if value < 1:
            raise UsageError(f"{what} is {value}; it must be at least 1.")
    if run.batch_tokens is not None and run.batch_tokens < run.sequences * run.sequence_tokens:
        raise UsageError(
            f"--batch is {run.batch_tokens:,} tokens; {run.sequences} sequence(s) of {run.sequence_tokens:,} are already more. "
            "Make the batch larger or the sequences fewer."
        )


def reckon_run(config: Config, run: Run, device: Device) -> TrainingPlan:
    """The plan for a run on devices of one kind. Weights of the encoder of pictures are there and not trained."""
    specs = [spec for spec in architecture_of(config).tensors(config)]
    trained = _adapter_count(specs, run.rank) if _is_adapter(run) else sum(s.count for s in specs if part_of(s) != "vision")
    memory = processor_memory(config, run, device.memory or 0, _threads(device)) if device.kind == "cpu" else step_memory(config, run)
    per_token = operations_per_token(config, run)
    layouts = tuple(_layouts(config, run, memory, per_token, device))
    why_not = "" if layouts else _why_not(memory, device, config, run)
    return TrainingPlan(run, count_parameters(config), trained, memory, per_token, per_token * run.tokens, layouts, why_not)


def _why_not(memory: StepMemory, device: Device, config: Config, run: Run) -> str:
    """Why no number of these devices holds it."""
    if device.most == 1:
        return (
            f"{memory.total / 1e9:,.1f} GB are needed, and {max(0, _usable(config, run, device)) / 1e9:,.1f} GB of its memory can be used"
        )
    return f"{memory.on_each(2**14, 8, 16) / 1e9:,.1f} GB are needed on each device, however many share the rest"


def _is_adapter(run: Run) -> bool:
    return run.method in ("lora", "qlora")


def step_memory(config: Config, run: Run) -> StepMemory:
    """The bytes of one step of one device's sequences."""
    specs = list(architecture_of(config).tensors(config))
    adapters = _adapter_count(specs, run.rank) if _is_adapter(run) else 0
    frozen = sum(stored_bytes(Q4_0 if run.method == "qlora" and step.is_in_blocks(spec) else BF16, spec.shape) for spec in specs)
    trained = adapters if _is_adapter(run) else sum(spec.count for spec in specs if part_of(spec) != "vision")
    return StepMemory(
        weights=frozen + 2 * adapters,
        gradients=2 * trained,
        optimizer=ADAM_BYTES * trained,
        activations=activation_bytes(config, run),
        gathered=_largest_layer(specs),
    )


def processor_memory(config: Config, run: Run, free_bytes: int, threads: int) -> StepMemory:
    """The bytes of one step of herd's own trainer on a processor with so much memory free, the program not counted."""
    pack = run.sequences * run.sequence_tokens
    found = student.taken(
        config,
        step.Learning(
            rank=run.rank if _is_adapter(run) else 0,
            blocks=run.method == "qlora",
            tokens=pack,
            longest=run.sequence_tokens,
            packs=1 if run.batch_tokens is None else max(1, run.batch_tokens // pack),
            recompute=run.checkpointing,
            keep_bytes=0 if run.checkpointing else free_bytes // student.KEPT_SHARE,
            threads=threads,
        ),
    )
    return StepMemory(found.weights, found.gradients, found.optimizer, found.activations, 0, found.products)


def _threads(device: Device) -> int:
    """How many compute: one for each processor that this process may run on, where the device is the one that it runs on."""
    if device.name != THIS_MACHINE:
        return THREADS_ELSEWHERE
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _adapter_count(specs: list[TensorSpec], rank: int) -> int:
    """Two matrices of `rank` beside every matrix of the layers; stacked experts have none."""
    return sum(rank * sum(spec.shape) for spec in specs if spec.kind is Kind.MATRIX and part_of(spec) != "vision")


def _largest_layer(specs: list[TensorSpec]) -> int:
    """Bytes in 16 bits of the largest group of weights that is needed at once: a layer, or a table."""
    groups: dict[str, int] = {}
    for spec in specs:
        group = ".".join(spec.name.split(".")[:2])
        groups[group] = groups.get(group, 0) + 2 * spec.count
    return max(groups.values())


def activation_bytes(config: Config, run: Run) -> int:
    """What the backward pass needs of one device's tokens, in 16 bits: with checkpointing each layer's input and everything of one
    layer, else everything of every layer (what goes into each norm and product, queries, keys, values, gate, up); and a chunk of
    logits."""
    tokens = run.sequences * run.sequence_tokens
    layers = [4 * config.width + each.inside for each in layer_widths(config)]
    kept = 2 * (config.width * len(layers) + max(layers)) if run.checkpointing else 2 * sum(layers)
    logits = 2 * 4 * min(tokens, LOGITS_CHUNK) * config.vocab_size
    return tokens * (kept + 2 * config.width * 3) + logits


def operations_per_token(config: Config, run: Run) -> float:
    """Of the forward and backward pass of one token: 2 for each weight and pass; a text of `sequence_tokens` sees half of itself.

    A pass for the input's gradient and one for the weights' follow the forward; frozen weights have no gradient of their own.
    """
    work = Work(config, Format("bf16", lambda _: BF16, ("bf16",), ""), F16)
    attention = work.attention_operations(run.sequence_tokens) / run.sequence_tokens
    specs = list(architecture_of(config).tensors(config))
    adapters = _adapter_count(specs, run.rank) if _is_adapter(run) else 0
    passes = 4.0 if _is_adapter(run) else 6.0
    total = passes * work.matrices + 6.0 * adapters + 3.5 * attention
    if run.checkpointing:
        total += 2.0 * (work.matrices - work.head) + 2.0 * adapters + attention
    return total


def _usable(config: Config, run: Run, device: Device) -> int:
    """Bytes of a device that a step may take."""
    if device.memory is None:
        raise UsageError(f"How much memory {device.title} has is what was built in; describe it with --device-memory.")
    program = student.program_bytes(run.checkpointing) if device.kind == "cpu" else runtime_bytes(config, device.kind)
    return int(device.memory * USABLE_SHARE[device.kind]) - program


def _layouts(config: Config, run: Run, memory: StepMemory, per_token: float, device: Device) -> Iterator[Sharing]:
    """Numbers of devices over which the run fits, with everything sharded; a single one first. At most so many that each has a
    sequence of the batch."""
    usable = _usable(config, run, device)
    peak, share = (device.peak("fp32"), PROCESSOR_SHARE) if device.kind == "cpu" else (device.peak("bf16", "fp32"), COMPUTE_SHARE)
    groups = None if run.batch_tokens is None else run.batch_tokens // (run.sequences * run.sequence_tokens)
    for devices in (2**power for power in range(15)):
        if devices > 1 and device.most == 1:
            return
        for tensor, context in _SPLITS:
            together = tensor * context
            if together > devices or tensor > device.most or (groups is not None and devices > groups * together):
                continue
            each = memory.on_each(devices, tensor, context)
            if each <= usable:
                rate = None if peak is None else devices * peak[1] * share / per_token
                yield Sharing(devices, _how(devices, tensor, context), each, usable, None if rate is None else run.tokens / rate, rate)
                break


_SPLITS = sorted(
    ((tensor, context) for tensor in (1, 2, 4, 8) for context in (1, 2, 4, 8, 16)), key=lambda split: (split[0] * split[1], split[1])
)


def _how(devices: int, tensor: int, context: int) -> str:
    if devices == 1:
        return "everything on one device"
    said = f"weights, gradients and optimizer sharded over {devices:,} (FSDP)"
    said += f", each layer shared by {tensor}" if tensor > 1 else ""
    return said + (f", each sequence by {context}" if context > 1 else "")


def parts(memory: StepMemory) -> Mapping[str, int]:
    """A step's memory as rows of a table."""
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        **({"kept by products": memory.products} if memory.products else {}),
    }


def assumed(device: Device) -> tuple[str, ...]:
    """What a plan for this kind of device takes for granted."""
    return PROCESSOR_ASSUMED if device.kind == "cpu" else ASSUMED
