"""What a model takes while it answers: weights by part, keys and values by kind of layer, pictures, activations, the runtime."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import cast

from herd.dtypes import BF16, BY_NAME, F16, F32, Q4_0, Q8_0, DType
from herd.errors import UsageError, did_you_mean
from herd.models.architecture import Config
from herd.models.sizes import (
    buffer_bytes,
    cache_bytes,
    kept_cache_bytes,
    needed_cache_bytes,
    program_bytes,
    weight_parts,
)
from herd.planner.formats import Chosen, Format
from herd.planner.pictures import largest_picture
from herd.records import dataclass

PAGE_TOKENS = 64
STEP_TOKENS = 512
STEP_OUTPUTS = 64
CACHE_FORMATS: Mapping[str, DType] = {"f16": F16, "bf16": BF16, "f32": F32, "q8_0": Q8_0, "q4_0": Q4_0}
RUNTIME_BYTES: Mapping[str, int] = {"gpu": 1_500_000_000, "apple": 1_000_000_000}
USABLE_SHARE: Mapping[str, float] = {"gpu": 0.92, "apple": 0.75, "cpu": 0.90}
ASSUMED = (
    "a GPU's runtime (context, libraries, workspaces of products) takes 1.5 GB on each device",
    "on a processor weights are as herd packs them (q5_k and q2_k grow), and its program takes 48 MB and 115 bytes a token of the "
    "vocabulary; measured within 5 % of the whole",
    "92 % of a GPU's memory can be used, 75 % of Apple's shared memory, 90 % of a processor's: the rest is other programs' and waste",
    f"a step takes at most {STEP_TOKENS} tokens of prompts at once, in float32 between its products",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a model: `users` answered at the same time, each with a conversation of `prompt_tokens` and
    `answer_tokens`, and room for one conversation of the whole `context`. `pictures`: in each conversation."""

    users: int
    context: int
    prompt_tokens: int
    answer_tokens: int
    pictures: int = 0

    @property
    def conversation_tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, by what for. `cache` by kind of layer, as herd's engine keeps it; `cache_kept_whole` what it would be if local layers kept
    every token, as some engines do; `whole` says that the sums count that."""

    weights: Mapping[str, int]
    cache: Mapping[str, int]
    cache_kept_whole: int
    pictures: int
    buffers: int
    runtime: int
    whole: bool

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def cache_bytes(self) -> int:
        return self.cache_kept_whole if self.whole else sum(self.cache.values())

    @property
    def total(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.pictures + self.buffers + self.runtime


def cache_format(name: str) -> DType:
    """The number format of keys and values that a user names."""
    bare = name.strip().lower()
    aliases = {
        "16": "f16",
        "fp16": "f16",
        "float16": "f16",
        "8": "q8_0",
        "int8": "q8_0",
        "q8": "q8_0",
        "4": "q4_0",
        "int4": "q4_0",
        "q4": "q4_0",
        "float32": "f32",
    }
    found = CACHE_FORMATS.get(aliases.get(bare, bare))
    if found is None:
        raise UsageError(f"--cache is {name!r:.40}{did_you_mean(bare, CACHE_FORMATS)} Keys and values: {', '.join(CACHE_FORMATS)}.")
    return found


def check_load(config: Config, load: Load, name: str) -> None:
    """`UsageError` for a context that the model does not have, and for conversations that do not fit into it."""
    if load.users < 1:
        raise UsageError(f"--users is {load.users}; it must be at least 1.")
    if not 1 <= load.context <= config.context_length:
        raise UsageError(
            f"--context is {load.context:,}; {name} was made for up to {config.context_length:,} tokens. Beyond that its positions "
            "mean nothing to it: choose a shorter context, or a release with a longer one (`herd models --pick --context N` lists them)."
        )
    if load.prompt_tokens < 1 or load.answer_tokens < 1:
        raise UsageError("--prompt-tokens and --answer-tokens must be at least 1.")
    if load.conversation_tokens > load.context:
        raise UsageError(
            f"A prompt of {load.prompt_tokens:,} and an answer of {load.answer_tokens:,} tokens do not fit into a context of "
            f"{load.context:,}."
        )


def runtime_bytes(config: Config, kind: str) -> int:
    """What the program takes on each device, besides what is reckoned."""
    return program_bytes(config) if kind == "cpu" else RUNTIME_BYTES[kind]


def reckon(config: Config, stored: Format, cache: DType, load: Load, *, kind: str = "gpu", whole: bool = False, devices: int = 1) -> Memory:
    """The memory of a model under a load, over all its devices together. On a processor, as herd's engine there takes it: weights packed,
    and of the buffers what so many users make it touch."""
    assert cache in BY_NAME.values()
    others, typical = load.users - 1, load.conversation_tokens
    longest, usual = (kept_cache_bytes(config, tokens, PAGE_TOKENS, STEP_TOKENS, cache) for tokens in (load.context, typical))
    by_kind = {kind: count + others * usual.get(kind, 0) for kind, count in longest.items()}
    kept_whole = cache_bytes(config, load.context, PAGE_TOKENS, cache) + others * cache_bytes(config, typical, PAGE_TOKENS, cache)
    picture = largest_picture(config)
    pictures = 0 if picture is None or not load.pictures else picture.encoding_bytes + load.users * load.pictures * picture.kept_bytes
    outputs = load.users if kind == "cpu" else max(STEP_OUTPUTS, load.users)
    return Memory(
        weights=_parts(cast(Hashable, config), stored.on(kind).chosen),
        cache=by_kind,
        cache_kept_whole=kept_whole,
        pictures=pictures,
        buffers=buffer_bytes(config, max(STEP_TOKENS, load.users), outputs) * devices,
        runtime=runtime_bytes(config, kind) * devices,
        whole=whole,
    )


@lru_cache(maxsize=256)
def _parts(config: Hashable, chosen: Chosen) -> Mapping[str, int]:
    return weight_parts(cast(Config, config), chosen)


def longest_context(config: Config, free_bytes: float, cache: DType) -> int:
    """How many tokens of one conversation fit into so much memory, up to the model's context."""
    low, high = 0, config.context_length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed_cache_bytes(config, middle, cache) <= free_bytes else (low, middle - 1)
    return low
