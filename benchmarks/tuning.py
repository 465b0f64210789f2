"""How fast and how small a step of tuning is, beside trl and peft in the same run. Prints one JSON line.

    python benchmarks/tuning.py MODEL [--data chats.jsonl] [--forms "herd lora" "trl lora" ...] [--documents 8] [--steps 3]

MODEL is what `herd.load` takes. `--data` holds conversations ({"messages": ...} and the other shapes that `herd tune` reads), which are
cut at `--max-tokens`; without it documents are random tokens, as long as real chats are (median 460 of at most 512), which cost the
same. All forms learn the same documents, each in a process of its own, by turns, `--rounds` times.

"tuned" forms tell glibc by environment variables to keep memory; herd tells it by itself. Counted are real tokens: padding is nobody's
work. Figures are medians; `of_peak` is the share of the arithmetic that this machine can do at most
in the type that the form computes in:

    LoRA      2 products of every frozen matrix (there, and the gradient of its input), 3 of every update
    full      3 products of every matrix
    attention 2 products there and 5 back, of the keys that a query can see (all are counted, also those that a form computes again)

Recomputed layers count once: computing them again is no work that was asked for.

"grpo" forms draw answers and learn from them: `--answers` to each of `--prompts` beginnings of documents, and a step is the drawing by the
weights of now, a reward that costs nothing, the gradient and the optimiser. All draw at temperature 1 from the whole distribution and
end no answer before `--answer-tokens`, so that answers are as many and as long for each: herd by its own engine, trl by transformers.
Completions/s are answers drawn and learned from per second of whole steps, `drawn_tokens_per_s` tokens per second of drawing alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, machine, say, sha256
from tuning_workers import FORMS

from herd.checkpoints import Checkpoint, open_checkpoint
from herd.models.llama import LlamaConfig
from herd.models.weights import Kind
from herd.text.tokenizer import Tokenizer, load_tokenizer

WORKERS = Path(__file__).resolve().parent / "tuning_workers.py"
# What a user of trl reads in forums: keep memory instead of mapping it anew for each tensor.
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(16 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
DEFAULT_FORMS = (
    "herd lora",
    "herd lora recomputed",
    "trl lora",
    "trl lora float32 kept",
    "trl lora float32 kept, tuned",
    "peft loop float32, tuned",
)
NUM_PAIRS = 4
SETTINGS = (
    "documents",
    "max_tokens",
    "rank",
    "pack",
    "warmup",
    "steps",
    "rounds",
    "threads",
    "prompts",
    "prompt_tokens",
    "answers",
    "answer_tokens",
)
# What a form is compared by: the method in its name, the rate, the unit.
RATES = {"dpo": ("pairs_per_s", "pairs/s"), "grpo": ("completions_per_s", "completions/s"), "": ("tokens_per_s", "real tokens/s")}


def documents_of(arguments: argparse.Namespace, checkpoint: Checkpoint) -> list[list[int]]:
    """Conversations as tokens, or random ones as long as real ones are."""
    if arguments.data is None:
        return random_documents(arguments.documents, arguments.max_tokens, checkpoint.config.vocab_size)
    from herd.data.account import Account
    from herd.data.samples import Chat, Passage
    from herd.data.shapes import read_samples
    from herd.data.tokenising import Tokenising
    from herd.text.formats import choose_format

    tokenizer = tokenizer_of(checkpoint)
    tokenising = Tokenising(tokenizer, choose_format(tokenizer, checkpoint.chat_template), learn="all")
    found: list[list[int]] = []
    for sample in read_samples([arguments.data], Account()):
        assert isinstance(sample, Chat | Passage), "conversations or texts"
        found += [list(example.tokens)[: arguments.max_tokens] for example in tokenising.examples(sample)]
    return random.Random(1).sample(found, arguments.documents)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    source = checkpoint.tokenizer
    assert source is not None, "the model has a tokenizer"
    return load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config)


def random_documents(count: int, longest: int, vocabulary: int) -> list[list[int]]:
    """Lengths as chats cut at 512 tokens have: half of them above nine tenths of the limit."""
    chance = random.Random(1)
    lengths = [longest if chance.random() < 0.42 else chance.randint(longest // 8, longest) for _ in range(count)]
    return [[chance.randrange(vocabulary) for _ in range(length)] for length in lengths]


def pairs_of(documents: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    """Preferences between the second halves of neighbours."""
    chosen = [documents[index % len(documents)] for index in range(2 * NUM_PAIRS)]
    return [
        {"prompt": first[: len(first) // 3], "chosen": first[len(first) // 3 :], "rejected": second[len(second) // 3 :]}
        for first, second in zip(chosen[0::2], chosen[1::2], strict=True)
    ]


def prompts_of(documents: Sequence[list[int]], tokenizer: Tokenizer, count: int, longest: int) -> list[dict[str, Any]]:
    """Beginnings of documents as texts, which is how trl takes them, and as the tokens that these are."""
    begun = [documents[index % len(documents)][:longest] for index in range(count)]
    texts = [tokenizer.decode(ids) for ids in begun]
    return [{"text": text, "tokens": tokenizer.encode(text)} for text in texts]


def operations(cfg: LlamaConfig, specs: Any, rank: int, lengths: Sequence[int], full: bool) -> float:
    """Arithmetic that a step over these documents asks for: multiplications and additions."""
    matrices = [spec for spec in specs if spec.kind is Kind.MATRIX]
    head = cfg.vocab_size * cfg.width
    held: int = sum(spec.count for spec in matrices) + head
    updates: int = sum(rank * sum(spec.shape) for spec in matrices)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    attention = 7 * 2 * pairs * cfg.num_heads * cfg.head_width * cfg.num_layers
    return sum(lengths) * (6 * held if full else 4 * held + 6 * updates) + attention


def run(form: str, job: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One form once. What it writes to standard error is shown only if it fails."""
    name = form.removesuffix(", tuned")
    environment = os.environ | (TUNED if form.endswith(", tuned") else {})
    command = [*shlex.split(arguments.before), sys.executable, str(WORKERS), name, str(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=arguments.limit_s, check=False)
    if done.returncode:
        raise SystemExit(f"{form} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def converted(model: Path, folder: Path) -> Path:
    """The same weights for transformers, in float32."""
    command = [sys.executable, "-m", "herd", "convert", str(model), str(folder), "--to", "hf", "--dtype", "f32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def summary(form: str, found: Sequence[dict[str, Any]], work: float, tokens: int, peaks: dict[str, float], answers: int) -> dict[str, Any]:
    seconds = [each for result in found for each in result["seconds"]]
    middle = statistics.median(seconds)
    made = {
        "s_per_step": round(middle, 3),
        "spread_s": [round(min(seconds), 3), round(max(seconds), 3)],
        "peak_gib": round(max(each["peak_bytes"] for each in found) / 2**30, 2),
        "dtype": found[0]["dtype"].removeprefix("torch."),
        "first_losses": [round(each, 4) for each in found[0]["losses"][:2]],
    }
    rate, _ = rate_of(form)
    if rate == "pairs_per_s":
        return made | {rate: round(NUM_PAIRS / middle, 3)}
    if rate == "completions_per_s":
        return made | {rate: round(answers / middle, 3)} | drawing(found)
    return made | {rate: round(tokens / middle, 1), "of_peak": round(work / middle / peaks[made["dtype"]], 3)}


def drawing(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How long answers were and how fast they were drawn."""
    steps = [step for each in found for step in zip(each["answer_tokens"], each["drawing_s"], strict=True)]
    return {
        "answer_tokens_per_step": statistics.median(tokens for tokens, _ in steps),
        "drawing_s": round(statistics.median(seconds for _, seconds in steps), 3),
        "drawn_tokens_per_s": round(statistics.median(tokens / seconds for tokens, seconds in steps), 1),
    }


def rate_of(form: str) -> tuple[str, str]:
    """What forms of a method are compared by, and its unit."""
    return next(rate for method, rate in RATES.items() if method in form)


def beside(forms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each of our forms beside all others of the same rate: of LoRA the first, of the other methods the only one."""
    found: dict[str, dict[str, Any]] = {}
    for ours in ("herd lora", "herd dpo", "herd grpo"):
        rate, _ = rate_of(ours)
        if ours in forms:
            found[f"{ours.replace(' ', '_')}_beside"] = {
                form: {
                    "times_as_fast": round(forms[ours][rate] / theirs[rate], 2),
                    "of_its_memory": round(forms[ours]["peak_gib"] / theirs["peak_gib"], 2),
                }
                for form, theirs in forms.items()
                if rate in theirs and form != ours
            }
    return found


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(arguments.model)
    assert isinstance(checkpoint.config, LlamaConfig), "a llama of text"
    documents = documents_of(arguments, checkpoint)
    needs_peers = any(not form.startswith("herd") for form in arguments.forms)
    hf = (arguments.folder or converted(arguments.model, folder / "model")) if needs_peers else None
    job = folder / "job.json"
    facts = {"checkpoint": str(arguments.model), "folder": str(hf), "documents": documents, "pairs": pairs_of(documents)}
    prompts = []
    if any("grpo" in form for form in arguments.forms):
        prompts = prompts_of(documents, tokenizer_of(checkpoint), arguments.prompts, arguments.prompt_tokens)
    job.write_text(json.dumps({name: getattr(arguments, name) for name in SETTINGS} | facts | {"prompts": prompts}), encoding="utf-8")
    peaks: list[dict[str, float]] = []
    results: dict[str, list[dict[str, Any]]] = {form: [] for form in arguments.forms}
    for turn in range(arguments.rounds):
        peaks.append(run("peak", job, arguments)["operations_per_s"])
        for form in arguments.forms:
            say(f"round {turn + 1}: {form}")
            results[form].append(run(form, job, arguments))
            say(f"    {results[form][-1]}")
    lengths = [len(ids) for ids in documents]
    answers = arguments.prompts * arguments.answers
    highest = {dtype: max(each[dtype] for each in peaks) for dtype in peaks[0]}

    def work(form: str) -> float:
        return operations(checkpoint.config, checkpoint.specs, arguments.rank, lengths, "full" in form)

    forms = {form: summary(form, found, work(form), sum(lengths), highest, answers) for form, found in results.items()}
    shape = {"lengths": lengths, "prompt_lengths": [len(each["tokens"]) for each in prompts]}
    return {**shape, "peak_gflops": {dtype: round(each / 1e9, 1) for dtype, each in highest.items()}, "forms": forms}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="conversations; default: random tokens")
    parser.add_argument("--folder", type=Path, help="the same model as transformers reads it, if it is there already")
    parser.add_argument("--forms", nargs="+", default=list(DEFAULT_FORMS), help=f"any of {', '.join(FORMS)}; peers also with ', tuned'")
    for name, default in {
        "documents": 8,
        "max-tokens": 512,
        "rank": 16,
        "pack": 1024,
        "warmup": 1,
        "steps": 3,
        "rounds": 1,
        "threads": 2,
        "prompts": 4,
        "prompt-tokens": 48,
        "answers": 4,
        "answer-tokens": 64,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit-s", type=float, default=3600, help="the longest that one form may take")
    parser.add_argument("--before", default="", help="put before each worker's command, such as 'nice -n -5' or 'numactl -N 0'")
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    for form in arguments.forms:
        if form.removesuffix(", tuned") not in FORMS:
            parser.error(f"{form!r} is no form; there are: {', '.join(FORMS)}")
    return arguments


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments, Path(folder))
    ours = next((form for form in arguments.forms if form.startswith("herd")), arguments.forms[0])
    rate, unit = rate_of(ours)
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "peft", "trl") if importable(name)}
    line = {
        "figure": "tuning step",
        "form": ours,
        "unit": unit,
        "value": found["forms"][ours][rate],
        **found,
        **beside(found["forms"]),
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "data": "random tokens" if arguments.data is None else arguments.data.name,
        "machine": machine(),
        "commit": commit(),
        "model": arguments.model.name,
        "model_sha256": sha256(arguments.model) if arguments.model.is_file() else None,
        "versions": versions,
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
