"""Are herd's blocks as good as llama.cpp's of the same size? One JSON line per figure.

    python benchmarks/block_formats.py MODEL TEXT [--formats q4_0,q4_1,...] [--orders 8] [--importance TEXT] [--bits 4.25] [--tokens 1500]

MODEL is widened to float32 once; each quantiser gets it, herd with the search that `herd quantize` makes, llama.cpp with its own, as
`llama-cpp-python` brings it. Both give the head the same format. What is compared is the mean KL divergence of each result from the
float32 model on the first tokens of TEXT, with activations in float32, so that nothing else differs. Formats whose blocks do not fit the
model's rows are left out, by name.

Which values share a block is chance, and a small model's KL hangs on it by a tenth. So there are --orders models that say the same
(equal_models.py; the first is MODEL as it is); the ratio of both quantisers is that of their mean KL's logarithms over them, with its
standard error.

With --bits (and --importance) besides: a file of so many bits a weight on average, its formats chosen by herd, beside llama.cpp's IQ4_XS
for all matrices.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from equal_models import write_reordered
from record import commit, figure, machine, say, sha256

from herd.api import Model, load
from herd.convert import convert, quantise
from herd.dtypes import BY_NAME
from herd.evals.divergence import Divergence, measure_divergence
from herd.evals.rows import Windowing
from herd.models.architecture import architecture_of
from herd.version import __version__

FILE_TYPES = {
    "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q8_0": 7, "iq4_nl": 25,
    "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq4_xs": 30,
}  # fmt: skip
"""llama.cpp's numbers of a whole file's format (llama.h); pure, so that S, M and L are one."""
Q8_0, IQ4_XS = 8, 23
"""ggml's numbers of the formats that a head is given."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--formats", default=",".join(FILE_TYPES))
    parser.add_argument("--orders", type=int, default=1, help="models with their columns in another order, the first as it is")
    parser.add_argument("--importance", type=Path, default=None, help="a text for herd's search; llama.cpp's is then without")
    parser.add_argument("--bits", type=float, default=None, help="also a file of so many bits a weight, beside llama.cpp's IQ4_XS")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--name", default=None, help="what the figures call the model")
    parser.add_argument("--folder", type=Path, default=None, help="where files are written; they are removed at the end")
    options = parser.parse_args()
    if options.bits is not None and options.importance is None:
        raise SystemExit("--bits needs --importance")
    text = options.text.read_text(encoding="utf-8")
    importance = None if options.importance is None else options.importance.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="herd-formats-", dir=options.folder) as name:
        sources = [write_source(Path(options.model), Path(name) / f"source-{order}", order) for order in range(options.orders)]
        facts = {"model": options.name or Path(options.model).name, "model_mb": round(sources[0].stat().st_size / 1e6)}
        facts |= {"model_sha256": sha256(sources[0]), "orders": options.orders}
        facts |= {"machine": machine(), "threads": machine()["cores"], "commit": commit()}
        facts["versions"] = {"herd": __version__, "llama.cpp": llama_cpp_version()}
        judge = Judge(sources, text, options.tokens, facts)
        with load(sources[0], activations="float32") as right:
            kinds = list(fitting([kind for kind in options.formats.split(",") if kind], right.config))
        for kind in kinds:
            judge.compare(
                f"KL of {kind}",
                lambda source, made, kind=kind: quantise(source, made, format=kind, head="q8_0", importance=importance),
                lambda source, made, kind=kind: quantise_with_llama_cpp(source, made, kind),
            )
        if options.bits is not None:
            judge.compare(
                f"KL at {options.bits} bits (llama.cpp: IQ4_XS)",
                lambda source, made: quantise(source, made, bits=options.bits, importance=importance),
                lambda source, made: quantise_with_llama_cpp(source, made, "iq4_xs", head=IQ4_XS),
            )


def write_source(model: Path, at: Path, order: int) -> Path:
    """One of the equal models as a GGUF file of float32."""
    source = at.with_suffix(".gguf")
    if order == 0:
        convert(model, source, to="gguf", dtype="f32")
    else:
        write_reordered(model, at, order)
        convert(at, source, to="gguf", dtype="f32")
        shutil.rmtree(at)
    return source


Quantiser = Callable[[Path, Path], object]
"""Writes the second file from the first."""


@dataclass(frozen=True)
class Judge:
    """Sets two quantisers side by side on equal models."""

    sources: list[Path]
    text: str
    tokens: int
    facts: dict[str, Any]

    def compare(self, name: str, ours: Quantiser, theirs: Quantiser) -> None:
        """Prints the figures of both, and of one over the other."""
        found: dict[str, list[Divergence]] = {"herd": [], "llama.cpp": []}
        sizes: dict[str, int] = {}
        for number, source in enumerate(self.sources, 1):
            with load(source, activations="float32") as right:
                for engine, quantiser in zip(found, (ours, theirs), strict=True):
                    say(f"{name}, {engine}, model {number} of {len(self.sources)}")
                    made = source.with_name("made.gguf")
                    quantiser(source, made)
                    sizes[engine] = made.stat().st_size
                    found[engine].append(self.divergence(right, made))
                    made.unlink()
        for engine, each in found.items():
            kls = [one.kl_mean for one in each]
            more = {"mean": rounded(statistics.mean(kls)), "error": rounded(standard_error(kls) if len(kls) > 1 else each[0].kl_error)}
            more |= {"same_choice": round(statistics.mean(one.agreement for one in each), 4)}
            more |= {"perplexity": rounded(math.exp(statistics.mean(one.nll_q for one in each)), 6)}
            more |= {"perplexity_of_source": rounded(math.exp(statistics.mean(one.nll_p for one in each)), 6)}
            figure(name, kls, "nats a token", {"engine": engine, "bytes": sizes[engine], **self.facts}, **more)
        logs = [math.log(one.kl_mean / other.kl_mean) for one, other in zip(found["herd"], found["llama.cpp"], strict=True)]
        mean = math.exp(statistics.mean(logs))
        more = {"mean": rounded(mean)} | ({"error": rounded(mean * standard_error(logs))} if len(logs) > 1 else {})
        figure(name, [math.exp(each) for each in logs], "ratio", {"engine": "herd / llama.cpp", **self.facts}, **more)

    def divergence(self, right: Model, made: Path) -> Divergence:
        with load(made, activations="float32") as model:
            windows = Windowing(size=min(512, right.config.context_length), max_tokens=self.tokens)
            return measure_divergence(right.provider, model.provider, self.text, windows)


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def fitting(kinds: list[str], config: Any) -> Iterator[str]:
    """The formats whose blocks fit all rows of the model."""
    rows = {spec.shape[-1] for spec in architecture_of(config).tensors(config) if not spec.kind.is_vector}
    for kind in kinds:
        if any(row % BY_NAME[kind].block for row in rows):
            say(f"{kind} does not fit rows of {', '.join(map(str, sorted(rows)))}")
        else:
            yield kind


def quantise_with_llama_cpp(source: Path, destination: Path, kind: str, head: int = Q8_0) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.output_tensor_type, params.token_embedding_type = FILE_TYPES[kind], head, head
    params.pure = True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), params)
    if status != 0:
        raise SystemExit(f"llama.cpp's quantiser returned {status}")


def llama_cpp_version() -> str:
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__}"


if __name__ == "__main__":
    main()
