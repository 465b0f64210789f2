"""Are herd's blocks as good as llama.cpp's of the same size? One JSON line per figure.

    python benchmarks/block_formats.py MODEL TEXT [--formats q4_0,q4_1,...] [--importance TEXT] [--bits 4.25] [--tokens 1500]

MODEL is widened to a file of float32 once; each quantiser gets it, herd with the search that `herd quantize` makes, llama.cpp with its
own, as `llama-cpp-python` brings it. Both give the head the same format. What is compared is the mean KL divergence of each result
from the float32 model on the first tokens of TEXT, with activations in float32, so that nothing else differs. Formats whose blocks do
not fit the model's rows are left out, by name.

With --bits (and --importance) besides: a file of so many bits a weight on average, its formats chosen by herd, beside llama.cpp's IQ4_XS
for all matrices.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

from herd.api import load
from herd.convert import convert, quantise
from herd.dtypes import BY_NAME
from herd.evals.divergence import measure_divergence
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
    parser.add_argument("--importance", type=Path, default=None, help="a text for herd's search; llama.cpp's is then without")
    parser.add_argument("--bits", type=float, default=None, help="also a file of so many bits a weight, beside llama.cpp's IQ4_XS")
    parser.add_argument("--tokens", type=int, default=1500)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    importance = None if options.importance is None else options.importance.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="herd-formats-") as name:
        folder = Path(name)
        source = folder / "source.gguf"
        convert(options.model, source, to="gguf", dtype="f32")
        facts = {"model": Path(options.model).name, "model_mb": round(source.stat().st_size / 1e6), "model_sha256": sha256(source)}
        facts |= {"machine": machine(), "threads": machine()["cores"], "commit": commit()}
        facts["versions"] = {"herd": __version__, "llama.cpp": llama_cpp_version()}
        with load(source, activations="float32") as right:
            for kind in fitting(options.formats.split(","), right.config):
                made = {"herd": folder / f"herd-{kind}.gguf", "llama.cpp": folder / f"llama-{kind}.gguf"}
                quantise(source, made["herd"], format=kind, head="q8_0", importance=importance)
                quantise_with_llama_cpp(source, made["llama.cpp"], kind)
                for engine, path in made.items():
                    say(f"{kind} of {engine}")
                    compare(right, path, text, options.tokens, f"KL of {kind}", {"engine": engine, "bytes": path.stat().st_size, **facts})
                    path.unlink()
            if options.bits is not None:
                if importance is None:
                    raise SystemExit("--bits needs --importance")
                made = {"herd": folder / "herd-bits.gguf", "llama.cpp": folder / "llama-iq4_xs.gguf"}
                chosen = quantise(source, made["herd"], bits=options.bits, importance=importance).formats
                quantise_with_llama_cpp(source, made["llama.cpp"], "iq4_xs", head=IQ4_XS)
                for engine, path in made.items():
                    more = {"engine": engine, "bytes": path.stat().st_size, **({"formats": chosen} if engine == "herd" else {}), **facts}
                    compare(right, path, text, options.tokens, f"KL at {options.bits} bits (llama.cpp: IQ4_XS)", more)


def fitting(kinds: list[str], config: Any) -> Iterator[str]:
    """The formats whose blocks fit all rows of the model."""
    rows = {spec.shape[-1] for spec in architecture_of(config).tensors(config) if not spec.kind.is_vector}
    for kind in kinds:
        if any(row % BY_NAME[kind].block for row in rows):
            say(f"{kind} does not fit rows of {', '.join(map(str, sorted(rows)))}")
        else:
            yield kind


def compare(right: Any, path: Path, text: str, tokens: int, name: str, facts: dict[str, Any]) -> None:
    with load(path, activations="float32") as model:
        windows = Windowing(size=min(512, right.config.context_length), max_tokens=tokens)
        found = measure_divergence(right.provider, model.provider, text, windows)
    more = {"error": round(found.kl_error, 5), "same_choice": round(found.agreement, 4), "perplexity": round(math.exp(found.nll_q), 4)}
    more["perplexity_of_source"] = round(math.exp(found.nll_p), 4)
    figure(name, [found.kl_mean], "nats a token", facts, **more)


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
