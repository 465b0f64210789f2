"""Are herd's 4- to 8-bit blocks as good as llama.cpp's of the same size? One JSON line per figure.

    python benchmarks/block_formats.py MODEL TEXT [--formats q4_0,q4_1,q5_0,q5_1,q8_0,iq4_nl] [--importance TEXT] [--tokens 1500]

MODEL is widened to a file of float32 once; each quantiser gets it, herd with the search that `herd quantize` makes, llama.cpp with its
own, as `llama-cpp-python` brings it. Both give the head the same format. What is compared is the mean KL divergence of each result
from the float32 model on the first tokens of TEXT, with activations in float32, so that nothing else differs.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

from herd.api import load
from herd.convert import convert, quantise
from herd.evals.divergence import measure_divergence
from herd.evals.rows import Windowing
from herd.version import __version__

FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "iq4_nl": 25}
"""llama.cpp's numbers of a whole file's format (llama.h)."""
Q8_0_HEAD = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--formats", default=",".join(FILE_TYPES))
    parser.add_argument("--importance", type=Path, default=None, help="a text for herd's search; llama.cpp's is then without")
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
            for kind in options.formats.split(","):
                made = {"herd": folder / f"herd-{kind}.gguf", "llama.cpp": folder / f"llama-{kind}.gguf"}
                quantise(source, made["herd"], format=kind, head="q8_0", importance=importance)
                quantise_with_llama_cpp(source, made["llama.cpp"], kind)
                for engine, path in made.items():
                    say(f"{kind} of {engine}")
                    compare(right, path, text, options.tokens, f"KL of {kind}", {"engine": engine, "bytes": path.stat().st_size, **facts})
                    path.unlink()


def compare(right: Any, path: Path, text: str, tokens: int, name: str, facts: dict[str, Any]) -> None:
    with load(path, activations="float32") as model:
        found = measure_divergence(right.provider, model.provider, text, Windowing(size=512, max_tokens=tokens))
    more = {"error": round(found.kl_error, 5), "same_choice": round(found.agreement, 4), "perplexity": round(math.exp(found.nll_q), 4)}
    more["perplexity_of_source"] = round(math.exp(found.nll_p), 4)
    figure(name, [found.kl_mean], "nats a token", facts, **more)


def quantise_with_llama_cpp(source: Path, destination: Path, kind: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.output_tensor_type, params.token_embedding_type = FILE_TYPES[kind], Q8_0_HEAD, Q8_0_HEAD
    params.pure = True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), params)
    if status != 0:
        raise SystemExit(f"llama.cpp's quantiser returned {status}")


def llama_cpp_version() -> str:
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__}"


if __name__ == "__main__":
    main()
