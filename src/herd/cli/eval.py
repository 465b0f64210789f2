"""`herd eval`: perplexity, divergence of two models, and multiple-choice accuracy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import LOADING, Examples, load_model, loading_options
from herd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.evals.rows import Windowing


class _Group(Examples, click.Group):
    """A group whose help leads with examples."""


@click.group(
    "eval",
    cls=_Group,
    examples="""
    herd eval perplexity smollm2-135m-instruct book.txt
    herd eval kl ./exact.gguf ./small.gguf book.txt
    herd eval accuracy smollm2-135m-instruct questions.jsonl
    """,
)
def evaluate() -> None:
    """Measure how good a model is."""


def _window_options(function: Any) -> Any:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--max-tokens", type=int, metavar="N", help="Only the first N tokens of the text."),
        click.option("--stride", type=int, metavar="N", help="Tokens between windows.  [default: half a window]"),
        click.option("--window", type=int, metavar="N", help="Tokens that are run at once.  [default: 1024, or the context]"),
    ):
        function = option(function)
    return function


@evaluate.command(
    cls=Examples,
    examples="""
    herd eval perplexity smollm2-135m-instruct book.txt
    herd eval perplexity ./model.gguf book.txt --activations float32 --json
    herd eval perplexity ./model.gguf book.txt --logprobs tokens.jsonl
    """,
)
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--logprobs", type=click.Path(path_type=Path), metavar="FILE", help="Write one line per token: its id and log-probability.")
@_window_options
@loading_options
def perplexity(model: str, text: Path, logprobs: Path | None, as_json: bool, **options: Any) -> None:
    """How well MODEL predicts the file TEXT: exp of the mean negative log-probability per token. Lower is better."""
    from herd.cli.output import counting
    from herd.evals.perplexity import measure_perplexity
    from herd.files.text import read_text

    words = read_text(text)
    with load_model(model, options) as loaded, counting("scoring") as told, _token_file(logprobs) as each:
        found = measure_perplexity(loaded.provider, words, _windowing(options), told=told, each=each)
    _print(found, as_json, f"perplexity {found.perplexity:.4f}  ({found.perplexity_low:.4f} to {found.perplexity_high:.4f})", found.tokens)


@evaluate.command(
    cls=Examples,
    examples="""
    herd eval kl ./exact.gguf ./small.gguf book.txt                    two files
    herd eval kl ./model.gguf ./model.gguf book.txt \\
        --activations int8 --p activations=float32                     two settings of one model
    """,
)
@click.argument("model_p", metavar="RIGHT")
@click.argument("model_q", metavar="MEASURED")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--p", "p_settings", multiple=True, metavar="NAME=VALUE", help="A setting of RIGHT alone, such as backend=reference.")
@_window_options
@loading_options
def kl(model_p: str, model_q: str, text: Path, p_settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """How far the next-token distributions of MEASURED are from those of RIGHT on the file TEXT.

    Options set both models; --p changes RIGHT. Both must have the same token ids.
    """
    from herd.cli.output import counting
    from herd.evals.divergence import measure_divergence
    from herd.files.text import read_text

    words = read_text(text)
    options_p = {**options, **_settings(p_settings)}
    with load_model(model_p, options_p) as p, load_model(model_q, options) as q, counting("comparing") as told:
        found = measure_divergence(p.provider, q.provider, words, _windowing(options), told=told)
    distance = f"KL {found.kl_mean:.6f} nats a token (median {found.kl_median:.6f}, 99 % {found.kl_p99:.6f})"
    line = f"{distance}, same first choice {found.agreement:.2%}"
    _print(found, as_json, line, found.tokens)


@evaluate.command(
    cls=Examples,
    examples="""
    herd eval accuracy smollm2-135m-instruct questions.jsonl
    herd eval accuracy ./model.gguf questions.jsonl --limit 200 --json
    """,
)
@click.argument("model")
@click.argument("questions", type=click.Path(path_type=Path))
@click.option("--limit", type=int, metavar="N", help="Only the first N questions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@loading_options
def accuracy(model: str, questions: Path, limit: int | None, as_json: bool, **options: Any) -> None:
    """How often MODEL finds the right choice likeliest.

    QUESTIONS has one JSON object a line: {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}, where answer
    is the index of the right choice.
    """
    from herd.cli.output import counting
    from herd.evals.accuracy import measure_accuracy, read_questions

    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; it must be at least 1.")
    asked = list(read_questions(questions, limit))
    with load_model(model, options) as loaded, counting("asking") as told:
        found = measure_accuracy(loaded.provider, asked, told=told)
    line = f"accuracy {found.accuracy:.2%} ± {found.accuracy_error:.2%}, by log-probability per token {found.accuracy_normalized:.2%} "
    _print(found, as_json, f"{line}(guessing: {found.chance:.2%})", found.questions, "questions")


def _windowing(options: dict[str, Any]) -> Windowing:
    from herd.evals.rows import Windowing

    return Windowing(size=options["window"], stride=options["stride"], max_tokens=options["max_tokens"])


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Loading options from NAME=VALUE."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or name not in LOADING:
            raise UsageError(f"--p is {pair!r:.60}; expected NAME=VALUE with one of {', '.join(LOADING)}.")
        try:
            found[name] = int(value) if name in ("threads", "context") else value
        except ValueError as error:
            raise UsageError(f"--p {name} is {value!r:.60}; expected a whole number.") from error
    return found


@contextlib.contextmanager
def _token_file(path: Path | None) -> Iterator[Callable[[list[int], NDArray[np.float64]], None] | None]:
    """Writes token ids and log-probabilities as they come; the file appears when all of it is there."""
    if path is None:
        yield None
        return
    from herd.files import atomic_write

    with atomic_write(path) as file:

        def write(ids: list[int], logprobs_t: NDArray[np.float64]) -> None:
            for token, logprob in zip(ids, logprobs_t.tolist(), strict=True):
                file.write(json.dumps({"token": token, "logprob": logprob}).encode() + b"\n")

        yield write


def _print(found: Any, as_json: bool, line: str, count: int, unit: str = "tokens") -> None:
    import dataclasses

    from herd.cli.output import print_json

    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        click.echo(f"{line}, over {count:,} {unit}")
