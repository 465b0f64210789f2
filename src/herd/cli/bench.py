"""`herd bench`: how fast a model runs here, beside what this machine can do."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import LOADING, Examples, given, load_model, loading_options
from herd.errors import ProviderError, UsageError

if TYPE_CHECKING:
    from herd.api import Model
    from herd.checkpoints.checkpoint import Checkpoint

_STARTS = 3
_START_TIMEOUT_S = 600.0


@click.command(
    cls=Examples,
    short_help="Time a model beside the machine's limits.",
    examples="""
    herd bench smollm2-135m-instruct
    herd bench ./model.gguf --threads 4 --json
    """,
)
@click.argument("model")
@click.option("--prompt-tokens", type=int, default=512, show_default=True, metavar="N", help="Length of the prompt that is timed.")
@click.option("--decode-tokens", type=int, default=128, show_default=True, metavar="N", help="Length of the answer that is timed.")
@click.option("--rounds", type=int, default=3, show_default=True, metavar="N", help="Times that each is repeated; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@loading_options
def bench(model: str, prompt_tokens: int, decode_tokens: int, rounds: int, as_json: bool, **options: Any) -> None:
    """Time MODEL: tokens per second, time to the first token, peak memory, and the share of the machine's limits."""
    from herd.cli.output import print_json, spinning

    for name, value, least in (("--prompt-tokens", prompt_tokens, 1), ("--decode-tokens", decode_tokens, 2), ("--rounds", rounds, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}.")
    with load_model(model, options) as loaded, spinning("timing"):
        room = loaded.provider.facts.context_length
        if prompt_tokens + 1 > room or decode_tokens + 2 > room:
            raise UsageError(f"The context has {room} tokens; choose fewer --prompt-tokens and --decode-tokens.")
        speeds = _speeds(loaded, prompt_tokens, decode_tokens, rounds)
        peak_bytes = _peak_bytes()
        work = _work(loaded.checkpoint, options["activations"] or "int8")
        name, fingerprint = loaded.name, loaded.fingerprint
    with spinning("timing the first token"):
        first_token_s = _first_token_s(model, options)
    limits = _limits(options["threads"], work) if options["backend"] == "cpu" else None
    figures = _figures(speeds, work, limits)
    if as_json:
        print_json({"model": name, "fingerprint": fingerprint, **figures, "first_token_s": first_token_s, "peak_bytes": peak_bytes})
    else:
        _print(name, fingerprint, figures, first_token_s, peak_bytes)


@dataclass(frozen=True, slots=True)
class _Speeds:
    """Tokens per second: the median of the rounds, and all of them."""

    prompt: list[float]
    decode: list[float]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a token costs: bytes that are read to decode it (all weights, but of a table of embeddings that is not also the
    head only a row), and operations on matrices for one of a prompt, by what is multiplied."""

    bytes_per_token: int
    int8_operations: int
    float32_operations: int

    @property
    def operations(self) -> int:
        return self.int8_operations + self.float32_operations

    @property
    def multiplied(self) -> str:
        """What a prompt's bound is made of."""
        kinds = {"int8": self.int8_operations, "float32": self.float32_operations}
        return " and ".join(name for name, count in kinds.items() if count)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the machine can do: bytes read per second, and operations per second (a multiply and an add are two) of the kinds
    that the model needs; infinite for a kind that it does not."""

    bytes_per_s: float
    int8_per_s: float
    float32_per_s: float

    def prompt_tokens_per_s(self, work: _Work) -> float:
        """A token's products one after the other, each kind at its own peak."""
        return 1 / (work.int8_operations / self.int8_per_s + work.float32_operations / self.float32_per_s)


def _speeds(loaded: Model, prompt_tokens: int, decode_tokens: int, rounds: int) -> _Speeds:
    """Times prompts that are not in the cache, and answers that do not end early, after one round that is not counted."""
    from herd.providers.base import CompletionRequest, Finished

    found = _Speeds([], [])
    sampling = loaded.sampling({"temperature": 0.0})
    for number in range(rounds + 1):
        for count, answer in ((prompt_tokens, 1), (2, decode_tokens)):
            ids = _ids(loaded.config.vocab_size, count, number)
            *_, end = loaded.provider.complete(CompletionRequest(prompt=ids, sampling=sampling, max_tokens=answer))
            if not isinstance(end, Finished) or number == 0:
                continue
            if answer == 1 and end.usage.prompt_s:
                found.prompt.append((count - end.usage.cached_tokens) / end.usage.prompt_s)
            elif answer > 1 and end.usage.completion_tokens > 1 and end.usage.decode_s:
                found.decode.append((end.usage.completion_tokens - 1) / end.usage.decode_s)
    return found


def _ids(vocab_size: int, count: int, number: int) -> list[int]:
    """Token ids that no round before had, spread over the vocabulary by the golden ratio."""
    return [int((1 + i + number * 7919) * 0.6180339887 * vocab_size) % vocab_size for i in range(count)]


def _peak_bytes() -> int | None:
    """The largest resident size of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _work(checkpoint: Checkpoint, activations: str) -> _Work:
    """The rule of the cpu backend: block formats are multiplied with int8 activations unless float32 is asked for, plain ones
    with float32."""
    from herd.models.weights import Kind, stored_bytes

    is_tied = checkpoint.config.tied_embeddings
    dtypes = {spec.name: checkpoint.dtype(spec.name) for spec in checkpoint.specs}
    read = [spec for spec in checkpoint.specs if is_tied or spec.kind is not Kind.EMBEDDING]
    operations = {True: 0, False: 0}
    for spec in checkpoint.specs:
        if spec.kind is Kind.MATRIX:
            operations[dtypes[spec.name].is_block and activations == "int8"] += 2 * spec.count
    return _Work(sum(stored_bytes(dtypes[spec.name], spec.shape) for spec in read), operations[True], operations[False])


def _first_token_s(model: str, options: dict[str, Any]) -> float:
    """Seconds from the start of a process to the first token that it prints, with the file in the system's cache."""
    import statistics
    import subprocess

    settings = [f"--{name.replace('_', '-')}={value}" for name, value in given(options, LOADING).items()]
    command = [sys.executable, "-m", "herd", "run", model, "--tokens", "1,2,3,4", "-n", "2", "-t", "0", *settings]
    seconds = []
    for _ in range(_STARTS):
        before = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds.append(time.perf_counter() - before)
            _, errors = process.communicate(timeout=_START_TIMEOUT_S)
        if not first or process.returncode != 0:
            raise ProviderError(f"`herd run {model}` in a process of its own failed: {errors.decode(errors='replace').strip():.500}")
    return statistics.median(seconds)


def _limits(threads: int | None, work: _Work) -> _Limits:
    from herd.backends.cpu.limits import measure_bandwidth, measure_float32, measure_int8

    return _Limits(
        measure_bandwidth(threads),
        measure_int8(threads) if work.int8_operations else math.inf,
        measure_float32(threads) if work.float32_operations else math.inf,
    )


def _figures(speeds: _Speeds, work: _Work, limits: _Limits | None) -> dict[str, Any]:
    """Medians, spreads, and the bound that each is set against."""
    import statistics

    figures: dict[str, Any] = {}
    for name, values, bound in (
        ("prompt", speeds.prompt, limits.prompt_tokens_per_s(work) if limits else None),
        ("decode", speeds.decode, limits.bytes_per_s / work.bytes_per_token if limits else None),
    ):
        middle = statistics.median(values) if values else None
        figures[f"{name}_tokens_per_s"] = middle
        figures[f"{name}_spread"] = [min(values), max(values)] if values else None
        figures[f"{name}_bound_tokens_per_s"] = bound
        figures[f"{name}_share_of_bound"] = middle / bound if middle is not None and bound else None
    figures["bytes_per_token"] = work.bytes_per_token
    figures["operations_per_prompt_token"] = work.operations
    figures["multiplied_in"] = work.multiplied if limits else None
    figures["read_bytes_per_s"] = limits.bytes_per_s if limits else None
    figures["int8_operations_per_s"] = limits.int8_per_s if limits and work.int8_operations else None
    figures["float32_operations_per_s"] = limits.float32_per_s if limits and work.float32_operations else None
    return figures


def _print(name: str, fingerprint: str, figures: dict[str, Any], first_token_s: float, peak_bytes: int | None) -> None:
    from herd.cli.output import size

    click.echo(f"{name}  ({fingerprint})")
    for what in ("prompt", "decode"):
        speed, bound, share = (figures[f"{what}_{end}"] for end in ("tokens_per_s", "bound_tokens_per_s", "share_of_bound"))
        told = "too short to time" if speed is None else f"{speed:,.1f} tokens/s"
        click.echo(f"  {what:<18}{told}{'' if share is None else f'   {share:.0%} of the bound, {bound:,.0f}'}")
    click.echo(f"  {'first token':<18}{first_token_s:.2f} s from the start of the process")
    if peak_bytes is not None:
        click.echo(f"  {'peak memory':<18}{size(peak_bytes)}")
    if figures["read_bytes_per_s"] is not None:
        peaks = {kind: figures[f"{kind}_operations_per_s"] for kind in ("int8", "float32")}
        told = ", ".join(f"{peak / 1e9:,.0f} GOPS in {kind}" for kind, peak in peaks.items() if peak is not None)
        click.echo(f"  {'this machine':<18}reads {size(figures['read_bytes_per_s'])}/s, {told}")
        products = f"a prompt multiplies every matrix once a token, in {figures['multiplied_in']}"
        click.echo(f"  Bounds: decode reads every weight once a token; {products}.")
