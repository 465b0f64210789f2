"""Does herd say what the reference says? 20 prompts, 256 tokens, and perplexity; prints one JSON line and fails if it does not.

    python benchmarks/exactness.py MODEL.gguf [--backend cpu] [--prompts 20] [--tokens 256] [--text wiki.test.raw]

The oracle is `transformers` in float32 on the dequantised weights, which reads the GGUF file by itself.

  float32 activations   the backend answers greedily; the oracle then reads prompt and answer in one pass. Wherever its best
                        token is another than the one that was drawn, its two best must be closer than 1e-3 (what follows is
                        judged on the text as it went on); log-probabilities of all drawn tokens agree to 2e-3.
  int8 activations      fed the oracle's text: where the best token differs, the oracle's margin is under 0.5; log-probabilities
                        differ by 0.05 on average and 1.0 at most; perplexity stays within 0.3 % of float32's, as far as the text can tell:
                        it may be further off by two standard errors (over the windows of the text; a whole wiki.test.raw has
                        0.015 %), which together must be below that limit themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS, Backend, BackendOptions, Plan, Span
from herd.checkpoints import Checkpoint, open_checkpoint
from herd.sampling.chain import Draw
from herd.sampling.params import SamplingParams
from herd.text.formats import choose_format
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer, load_tokenizer

PROMPTS = Path(__file__).resolve().parent / "exactness_prompts.json"
STEP_OUTPUTS = 64
LEAST_WINDOWS = 8
"""Fewer have no standard error worth the name."""
WINDOW = 512

Oracle = Callable[[Sequence[int]], NDArray[np.floating[Any]]]
"""Tokens -> logits [T, V] of every position."""


@dataclass(frozen=True)
class Limits:
    """What must hold. Margins are of the oracle's two best logits, log-probabilities are natural."""

    tie: float = 1e-3
    float32_logprob: float = 2e-3
    int8_margin: float = 0.5
    int8_mean: float = 0.05
    int8_largest: float = 1.0
    perplexity: float = 0.003


LIMITS = Limits()


@dataclass(frozen=True)
class Agreement:
    """How far one way of running is from the oracle over `tokens` answered tokens. `worst_margin` is the oracle's largest
    margin where the best tokens differ."""

    tokens: int
    disagreements: int
    worst_margin: float
    mean_logprob: float
    largest_logprob: float

    def is_exact(self, limits: Limits = LIMITS) -> bool:
        return self.worst_margin < limits.tie and self.largest_logprob <= limits.float32_logprob

    def is_close(self, limits: Limits = LIMITS) -> bool:
        return (
            self.worst_margin < limits.int8_margin and self.mean_logprob <= limits.int8_mean and self.largest_logprob <= limits.int8_largest
        )


@dataclass(frozen=True)
class Answer:
    """A prompt and what a backend made of it, with the log-probability it gave to each of its tokens."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def answer_greedily(backend: Backend, prompt: Sequence[int], length: int) -> Answer:
    """`length` tokens after `prompt`, whatever they are: end tokens do not end it. Drawn by the backend itself."""
    pages = list(range(math.ceil((len(prompt) + length) / PAGE_TOKENS)))
    tokens, start, drawn, logprobs = list(prompt), 0, [], []
    while len(drawn) < length:
        piece = tokens[start : start + 256]
        start += len(piece)
        is_last = start == len(tokens)
        draw = Draw(params=SamplingParams(temperature=0.0), seed=0, position=len(tokens))
        choices = backend.step(Plan((Span(start - len(piece), piece, pages, int(is_last), (draw,) if is_last else ()),))).choices[0]
        for choice in choices:
            tokens.append(choice.token)
            drawn.append(choice.token)
            logprobs.append(choice.logprob)
    return Answer(list(prompt), drawn, logprobs)


def logits_of(backend: Backend, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits [T, V] of a text, read in chunks."""
    pages = list(range(math.ceil(len(tokens) / PAGE_TOKENS)))
    pieces = []
    for start in range(0, len(tokens), STEP_OUTPUTS):
        piece = list(tokens[start : start + STEP_OUTPUTS])
        rows = backend.step(Plan((Span(start, piece, pages, len(piece)),), want_logits=True)).logits_RV
        assert rows is not None
        pieces.append(rows)
    return np.concatenate(pieces)


def logprobs_of(logits_TV: NDArray[np.floating[Any]], tokens_T: Sequence[int]) -> NDArray[np.float64]:
    """Log-probability that each row gives to its token."""
    rows = logits_TV.astype(np.float64)
    top = rows.max(axis=1)
    normaliser = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return rows[np.arange(len(rows)), list(tokens_T)] - normaliser


@dataclass
class _Tally:
    tokens: int = 0
    disagreements: int = 0
    worst_margin: float = 0.0
    total: float = 0.0
    largest: float = 0.0

    def add(self, oracle_TV: NDArray[Any], best_T: NDArray[np.int64], differences_T: NDArray[np.float64]) -> None:
        two = np.sort(np.partition(oracle_TV, -2, axis=1)[:, -2:], axis=1)
        margins = (two[:, 1] - two[:, 0])[oracle_TV.argmax(axis=1) != best_T]
        self.tokens += len(best_T)
        self.disagreements += len(margins)
        self.worst_margin = max(self.worst_margin, float(margins.max(initial=0.0)))
        self.total += float(np.abs(differences_T).sum())
        self.largest = max(self.largest, float(np.abs(differences_T).max()))

    def agreement(self) -> Agreement:
        return Agreement(self.tokens, self.disagreements, self.worst_margin, self.total / max(1, self.tokens), self.largest)


def compare(float32: Backend, int8: Backend | None, oracle: Oracle, prompts: Sequence[Sequence[int]], length: int) -> list[Agreement]:
    """Agreement of the float32 backend's own answers with the oracle, then of the int8 backend fed the same text."""
    exact, close = _Tally(), _Tally()
    for number, prompt in enumerate(prompts, 1):
        answer = answer_greedily(float32, prompt, length)
        text = answer.prompt + answer.tokens[:-1]
        oracle_TV = oracle(text)[len(prompt) - 1 :]
        expected = logprobs_of(oracle_TV, answer.tokens)
        exact.add(oracle_TV, np.array(answer.tokens), np.array(answer.logprobs) - expected)
        if int8 is not None:
            int8_TV = logits_of(int8, text)[len(prompt) - 1 :]
            close.add(oracle_TV, int8_TV.argmax(axis=1), logprobs_of(int8_TV, answer.tokens) - expected)
        print(f"prompt {number} of {len(prompts)}", file=sys.stderr, flush=True)
    return [exact.agreement()] + ([close.agreement()] if int8 is not None else [])


@dataclass(frozen=True)
class Perplexities:
    """Of every token after the first of each window, with both kinds of activations. `change`: int8's over float32's, less 1, and
    `change_error` its standard error, over windows."""

    float32: float
    int8: float
    change: float
    change_error: float
    windows: int

    def is_decided(self, limits: Limits = LIMITS) -> bool:
        """Whether there were enough windows to tell."""
        return 2 * self.change_error <= limits.perplexity

    def is_close(self, limits: Limits = LIMITS) -> bool:
        return self.is_decided(limits) and abs(self.change) - 2 * self.change_error <= limits.perplexity


def perplexities(float32: Backend, int8: Backend, windows: Sequence[Sequence[int]]) -> Perplexities:
    """Both read the same windows, of one length, `LEAST_WINDOWS` at least."""
    costs = np.array([[-logprobs_of(logits_of(each, w[:-1]), w[1:]).mean() for each in (float32, int8)] for w in windows])
    more = costs[:, 1] - costs[:, 0]
    error = float(more.std(ddof=1)) / math.sqrt(len(more))
    change = math.expm1(float(more.mean()))
    return Perplexities(*np.exp(costs.mean(axis=0)).tolist(), change, (1 + change) * error, len(windows))


def text_windows(tokenizer: Tokenizer, path: Path, count: int | None) -> list[list[int]]:
    """`count` windows of `WINDOW` tokens spread evenly over a text (None: all). Too few end the program."""
    tokens = tokenizer.encode(path.read_text(encoding="utf-8"))
    starts = list(range(0, len(tokens) - WINDOW + 1, WINDOW))
    if count is not None and count < len(starts):
        starts = [starts[index * len(starts) // count] for index in range(count)]
    if len(starts) < LEAST_WINDOWS:
        raise SystemExit(f"{len(starts)} windows of {WINDOW} tokens; {LEAST_WINDOWS} are the least that perplexities are compared on.")
    return [tokens[start : start + WINDOW] for start in starts]


def prompts_of(checkpoint: Checkpoint, tokenizer: Tokenizer, which: str, count: int) -> list[list[int]]:
    """The first `count` prompts of the data file as token ids, chat turns in the model's own format."""
    return list(_prompts(checkpoint, tokenizer, which))[:count]


def _prompts(checkpoint: Checkpoint, tokenizer: Tokenizer, which: str) -> Iterator[list[int]]:
    chat_format = choose_format(tokenizer, checkpoint.chat_template)
    for entry in json.loads(PROMPTS.read_text(encoding="utf-8"))[which]:
        if "chat" not in entry:
            yield tokenizer.encode(entry["text"])
        elif chat_format is None:
            yield tokenizer.encode(entry["chat"])
        else:
            yield chat_format.render([Message(role=Role.USER, content=entry["chat"])])


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    source = checkpoint.tokenizer
    assert source is not None, "this comparison needs a model with a tokenizer"
    return load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config)


def transformers_oracle(path: Path) -> Oracle:
    """`transformers` in float32, reading the GGUF file or Hugging Face folder by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(path.parent if path.is_file() else path, dtype=torch.float32, **where).eval()

    def logits(tokens: Sequence[int]) -> NDArray[np.floating[Any]]:
        with torch.inference_mode():
            found: NDArray[np.floating[Any]] = model(torch.tensor([list(tokens)])).logits[0].numpy()
        return found

    return logits


def open_backend(name: str, checkpoint: Checkpoint, activations: str, num_tokens: int, threads: int | None = None) -> Backend:
    """A backend with cache for one sequence of `num_tokens`."""
    options = BackendOptions(activations=activations, threads=threads)
    backend: Backend
    if name == "reference":
        from herd.backends.reference import ReferenceBackend

        backend = ReferenceBackend(checkpoint.config, checkpoint.leaf, options)
    elif name == "torch":
        from herd.backends.torch import TorchBackend

        backend = TorchBackend(checkpoint.config, checkpoint.leaf, options)
    else:
        from herd.backends.cpu import CpuBackend

        backend = CpuBackend(checkpoint.config, checkpoint.leaf, options, checkpoint.release_pages)
    backend.allocate(math.ceil(num_tokens / PAGE_TOKENS) + 1)
    return backend


def measure(path: Path, oracle: Oracle, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison, as the JSON line says it."""
    checkpoint = open_checkpoint(path)
    tokenizer = tokenizer_of(checkpoint)
    prompts = prompts_of(checkpoint, tokenizer, arguments.which, arguments.prompts)
    room = max(WINDOW, max(len(prompt) for prompt in prompts) + arguments.tokens)
    windows = None if arguments.text is None else text_windows(tokenizer, arguments.text, arguments.windows)
    float32 = open_backend(arguments.backend, checkpoint, "float32", room, arguments.threads)
    int8 = open_backend(arguments.backend, checkpoint, "int8", room, arguments.threads)
    exact, close = compare(float32, int8, oracle, prompts, arguments.tokens)
    found: dict[str, Any] = {
        "question": "does herd say what the reference says",
        "model": path.name,
        "backend": float32.fingerprint,
        "prompts": len(prompts),
        "float32": asdict(exact),
        "int8": asdict(close),
        "limits": asdict(LIMITS),
        "passed": exact.is_exact() and close.is_close(),
    }
    if windows is not None:
        read = perplexities(float32, int8, windows)
        found["perplexity"] = asdict(read)
        found["passed"] = found["passed"] and read.is_close()
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", choices=["cpu", "reference"], default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--which", choices=["general", "stories"], default="general", help="which prompts of exactness_prompts.json")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--text", type=Path, help="a text file for perplexity, such as wiki.test.raw")
    parser.add_argument("--windows", type=int, help=f"how many windows of {WINDOW} tokens of it (default: all)")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    found = measure(arguments.model, transformers_oracle(arguments.model), arguments)
    print(json.dumps(found, ensure_ascii=False))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
