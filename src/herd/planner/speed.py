"""How fast a model answers: a roofline from the bytes a step reads, the operations it computes, and what devices say to each other.

Every figure comes as a bound (the device does nothing else, at its peak) and as what to expect (with the shares of `ASSUMED`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from herd.dtypes import DType
from herd.models.architecture import CacheShape, Config, architecture_of
from herd.models.sizes import cache_kinds, distinct_experts, num_chosen, part_of
from herd.models.weights import Kind, TensorSpec, stored_bytes
from herd.planner.devices import Device
from herd.planner.formats import Format
from herd.planner.memory import Load
from herd.records import dataclass

READ_SHARE, COMPUTE_SHARE = 0.80, 0.50
LINK_LATENCY_S = 10e-6
ASSUMED = (
    "weights are read once a step, whatever the number of users; of experts those that the step's tokens meet, each as likely as any other",
    "keys and values of everything that a token sees are read once for each user",
    f"devices that share a layer add up their results twice a layer, in {LINK_LATENCY_S * 1e6:.0f} microseconds and the time of the bytes",
    "a prompt is bound by operations: 2 for each weight that a token meets, and 4 times the head's width for each key that a head sees",
    "pictures count as the tokens that stand for them; the time to encode them is not in the time to the first token",
    "no speculation, and nothing of a prompt is in the cache already",
)


@dataclass(frozen=True, slots=True)
class Shares:
    """What of its peaks a device reaches: of the bandwidth where memory is waited for, of the operations where they are. `measured`:
    where it was measured what products and attention reach on the device itself, that counts instead of `compute`."""

    read: float = READ_SHARE
    compute: float = COMPUTE_SHARE
    measured: bool = True


PEAK = Shares(1.0, 1.0, measured=False)


def assumed(shares: Shares, device: Device | None) -> tuple[str, ...]:
    """What is assumed of a device's speed, in sentences."""
    rates = [f"{name} {rate / 1e9:,.0f}" for name, rate in device.products.items()] if device is not None and shares.measured else []
    if not rates or device is None:
        computes = f"one that computes at {shares.compute:.0%} of the dense peak"
        return (f"a step that waits for memory reads at {shares.read:.0%} of the bandwidth, {computes}", *ASSUMED)
    if device.attention is not None:
        rates.append(f"attention {device.attention / 1e9:,.0f}")
    return (
        f"a step that waits for memory reads at {shares.read:.0%} of the measured bandwidth, which is what herd's engine does",
        f"one that computes does it as fast as one layer of random weights did here, in GOPS: {', '.join(rates)}",
        *ASSUMED,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share a model: `tensor` of them share each layer, and `stages` groups of so many have the layers one after
    another. `copies` of each kv head, where more devices share a layer than there are."""

    tensor: int = 1
    stages: int = 1
    copies: int = 1

    @property
    def devices(self) -> int:
        return self.tensor * self.stages

    def __str__(self) -> str:
        if self.devices == 1:
            return "one device"
        shared = f"{self.stages} groups of layers, each shared by {self.tensor}" if self.stages > 1 else f"layers shared by {self.tensor}"
        if self.tensor == 1:
            shared = f"{self.stages} groups of layers"
        return f"{shared}{f', kv heads kept {self.copies} times' if self.copies > 1 else ''}"


class Work:
    """What one step of a model costs, apart from any device."""

    def __init__(self, config: Config, stored: Format, cache: DType) -> None:
        self.config, self.stored, self.cache = config, stored, cache
        self._specs: list[TensorSpec] = [spec for spec in architecture_of(config).tensors(config) if part_of(spec) != "vision"]
        self.is_chunked = getattr(config, "chunk", None) is not None

    @cached_property
    def matrices(self) -> int:
        """Weights that a token is multiplied with: all but the table of embeddings, of experts the chosen ones, a tied head once."""
        return sum(inner + head for inner, head in self.formats.values())

    @cached_property
    def _tied_head(self) -> int:
        if any(spec.kind is Kind.HEAD for spec in self._specs):
            return 0
        return sum(spec.count for spec in self._specs if spec.name == "embed")

    def _met(self, spec: TensorSpec) -> int:
        return spec.count * num_chosen(self.config) // spec.shape[0] if spec.kind is Kind.EXPERTS else spec.count

    @cached_property
    def head(self) -> int:
        """Weights of the head: of a prompt only the last token meets them."""
        return sum(head for _, head in self.formats.values())

    @cached_property
    def formats(self) -> Mapping[str, tuple[int, int]]:
        """The weights that a token is multiplied with, by their format: those of the layers, and those of the head."""
        found: dict[str, tuple[int, int]] = {}
        for spec in self._specs:
            is_head = spec.kind is Kind.HEAD or (spec.name == "embed" and bool(self._tied_head))
            if is_head or spec.kind is not Kind.EMBEDDING:
                inner, head = found.get(self.stored.chosen(spec).name, (0, 0))
                met = self._met(spec)
                found[self.stored.chosen(spec).name] = (inner, head + met) if is_head else (inner + met, head)
        return found

    def read_bytes(self, num_tokens: int) -> float:
        """Bytes of weights that a step of so many tokens reads."""
        total = float(self._read_always)
        for rows, size in self._tables.items():
            total += size * min(num_tokens, rows) / rows
        for count, size in self._experts.items():
            total += size * distinct_experts(count, num_chosen(self.config), num_tokens) / count
        return total

    @cached_property
    def _read_always(self) -> int:
        """Bytes that every step reads, whatever its tokens."""
        return sum(self._bytes(spec) for spec in self._specs if spec.kind is not Kind.EXPERTS and not self._is_looked_up(spec))

    @cached_property
    def _tables(self) -> Mapping[int, int]:
        """Bytes of tables of which a token reads one row, by their rows."""
        return self._by_first(spec for spec in self._specs if self._is_looked_up(spec))

    @cached_property
    def _experts(self) -> Mapping[int, int]:
        """Bytes of all experts, by how many a layer has."""
        return self._by_first(spec for spec in self._specs if spec.kind is Kind.EXPERTS)

    def _by_first(self, specs: Iterable[TensorSpec]) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for spec in specs:
            found[spec.shape[0]] = found.get(spec.shape[0], 0) + self._bytes(spec)
        return found

    def _is_looked_up(self, spec: TensorSpec) -> bool:
        return spec.kind is Kind.EMBEDDING and not self._tied_head

    def _bytes(self, spec: TensorSpec) -> int:
        return stored_bytes(self.stored.chosen(spec), spec.shape)

    def cache_read_bytes(self, context: int) -> int:
        """Bytes of keys and values that the next token of one conversation reads."""
        return sum(kind.num_bytes(context) for kind in cache_kinds(self.config, self.cache))

    def seen_operations(self, context: int) -> float:
        """Of one token's queries with the keys of `context` tokens and of what they read."""
        return sum(4.0 * s.num_heads * s.head_width * (context if s.reach is None else min(context, s.reach)) for s in self._caches)

    def attention_operations(self, tokens: int) -> float:
        """Of queries with keys and of what they read, over a whole text from its first token."""
        return sum(4.0 * s.num_heads * s.head_width * self._pairs(tokens, s.reach) for s in self._caches)

    def _pairs(self, tokens: int, reach: int | None) -> float:
        """How many (query, key) pairs causal attention has: in chunks of `reach`, or each token with the last `reach`."""
        if reach is None or tokens <= reach:
            return tokens * tokens / 2
        return tokens * reach / 2 if self.is_chunked else reach * reach / 2 + (tokens - reach) * reach

    def computing(self, device: Device, shares: Shares, tokens: int, outputs: int, attention: float) -> float | None:
        """Seconds that one device multiplies for so many tokens, of which `outputs` meet the head, and for so many operations of
        attention. None where its peak is not known, and nothing was measured in its place."""
        peak = self.peak(device)
        usual = None if peak is None else peak * shares.compute
        total = 0.0
        for name, (inner, head) in self.formats.items():
            rate = device.products.get(name, usual) if shares.measured else usual
            if rate is None:
                return None
            total += 2.0 * (inner * tokens + head * outputs) / rate
        rate = device.attention if shares.measured and device.attention is not None else usual
        return total if not attention else None if rate is None else total + attention / rate

    def peak(self, device: Device) -> float | None:
        """Operations per second that bound this model's products. Block formats are multiplied in int8 on processors and widened to
        16 bits on GPUs; float8 matrices run at its peak, the others of such a model at that of 16 bits."""
        names = [name for name in self.stored.multiplied if name != "int8" or device.kind == "cpu"]
        found = device.peak(*names)
        if found is None or found[0] != "fp8" or "bf16" not in device.peaks:
            return None if found is None else found[1]
        return 1.0 / (self._float8_share / found[1] + (1.0 - self._float8_share) / device.peaks["bf16"])

    @cached_property
    def _float8_share(self) -> float:
        narrow = sum(self._met(spec) for spec in self._specs if self.stored.chosen(spec).name == "f8_e4m3")
        return narrow / self.matrices

    @cached_property
    def _caches(self) -> tuple[CacheShape, ...]:
        return architecture_of(self.config).caches(self.config)


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step, and what it waits for: memory, operations or links."""

    seconds: float
    waits_for: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second and times, as bounds or as expected.

    alone            tokens a second that one user gets who is alone, in a conversation of the usual length
    together         tokens a second that all users get together when all are being answered, prompts not counted
    with_prompts     the same when each answer is followed by the next user's prompt: what the machine delivers
    first_token_s    from a prompt to its first token, alone; `last_first_token_s` for the last of all users who ask at once
    waits_for        what the step of all users waits for; None of a figure: the device's peak of operations is not known
    """

    alone: float
    together: float
    with_prompts: float | None
    first_token_s: float | None
    last_first_token_s: float | None
    waits_for: str
    waits_alone_for: str


EXPECTED = Shares()
HERE = Shares(0.90, 0.58)
"""What herd's processor backend reaches of limits that were measured on the same machine (docs/explain/speed.md): of operations only
where it was not measured what products reach there (`Device.products`)."""


def predict(work: Work, device: Device, layout: Layout, load: Load, shares: Shares = EXPECTED) -> Speed:
    """The speed of a model on devices that share it so. Devices in stages work on different users' tokens at the same time."""
    typical = load.prompt_tokens + load.answer_tokens // 2
    alone = decode_step(work, device, layout, 1, typical, shares)
    in_stage = max(1, load.users // layout.stages)
    step = decode_step(work, device, layout, in_stage, typical, shares)
    together = load.users / step.seconds if load.users >= layout.stages else load.users / alone.seconds
    prompt = prompt_seconds(work, device, layout, load.prompt_tokens, shares)
    if prompt is None:
        return Speed(1 / alone.seconds, together, None, None, None, step.waits_for, alone.waits_for)
    busy = load.users * prompt / layout.stages + load.answer_tokens * load.users / together
    return Speed(
        1 / alone.seconds, together, load.users * load.answer_tokens / busy, prompt, load.users * prompt / layout.stages,
        step.waits_for, alone.waits_for,
    )  # fmt: skip


def decode_step(work: Work, device: Device, layout: Layout, users: int, context: int, shares: Shares = PEAK) -> Step:
    """One token for each of `users` who all see `context` tokens; stages one after another, each with its part of the layers."""
    group = layout.tensor
    cache = users * work.cache_read_bytes(context) * layout.copies
    reading = (work.read_bytes(users) + cache) / (device.bandwidth * group * shares.read)
    computing = (work.computing(device, shares, users, users, users * work.seen_operations(context)) or 0.0) / group
    talking = link_seconds(work, device, group, users)
    waits_for = "memory" if reading >= computing else "operations"
    seconds = max(reading, computing) + talking
    return Step(seconds, "links" if talking > seconds / 2 else waits_for)


def prompt_seconds(work: Work, device: Device, layout: Layout, tokens: int, shares: Shares = PEAK) -> float | None:
    """A prompt from start to its first token; None where the device's peak is not known. Stages take their turns, so they save a
    single prompt nothing."""
    computing = work.computing(device, shares, tokens, 1, work.attention_operations(tokens))
    if computing is None:
        return None
    reading = work.read_bytes(tokens) / (device.bandwidth * layout.tensor * shares.read)
    return max(computing / layout.tensor, reading) + link_seconds(work, device, layout.tensor, tokens)


def link_seconds(work: Work, device: Device, group: int, tokens: int) -> float:
    """Adding up what the devices of a group have of each token, twice a layer: a ring over links that carry half of `link` each way."""
    if group == 1:
        return 0.0
    one_way = (device.link or PCIE_BYTES_PER_S) / 2
    moved = 2 * (group - 1) / group * tokens * work.config.width * 2
    return 2 * work.config.num_layers * (LINK_LATENCY_S + moved / one_way)


PCIE_BYTES_PER_S = 64e9
"""Both directions together of PCIe 4 with 16 lanes, where a device's own links are not known."""
