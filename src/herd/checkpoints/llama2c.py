"""Files of karpathy's llama2.c: the smallest real models. Float32, in fixed order, Meta's rotary layout.

    version 0   7 i32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len) | weights
                a negative vocab_size says that the head is stored too; after the last norm come two rotary tables
    version 1   "24ka" u32, version i32, the same 7, u8 shared head, zeros to byte 256 | weights in another order

Source: llama2.c `run.c` and `export.py`. Version 2 is quantised and refused. The files give no eps and no rotary base: 1e-5 and
10000, as that program assumes. Its tokenizer (tok512.bin and the like) lies beside the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from herd.checkpoints.account import check_config
from herd.checkpoints.checkpoint import About, Checkpoint, Fact, TokenizerSource
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader
from herd.checkpoints.stored import Source, StoredTensor
from herd.dtypes import F32
from herd.errors import FileProblem
from herd.files import BoundedReader, MappedFile
from herd.models import llama
from herd.models.rope import Rope
from herd.models.weights import TensorSpec

MAGIC_V1 = 0x616B3432
HEADER_BYTES_V1 = 256
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
NORM_EPS, THETA = 1e-5, 10000.0
# Our names in the order of each version; a name with {} is there for all layers, one after the other.
ORDER_V0: tuple[str, ...] = (
    "embed", "layers.{}.attention_norm", "layers.{}.attention.q", "layers.{}.attention.k", "layers.{}.attention.v",
    "layers.{}.attention.out", "layers.{}.ffn_norm", "layers.{}.ffn.gate", "layers.{}.ffn.down", "layers.{}.ffn.up", "norm",
    "rotary tables", "head",
)  # fmt: skip
ORDER_V1: tuple[str, ...] = (
    "layers.{}.attention_norm", "layers.{}.ffn_norm", "norm", "embed", "layers.{}.attention.q", "layers.{}.attention.k",
    "layers.{}.attention.v", "layers.{}.attention.out", "layers.{}.ffn.gate", "layers.{}.ffn.down", "layers.{}.ffn.up", "head",
)  # fmt: skip


def open_llama2c(path: Path) -> Checkpoint:
    """Open a llama2.c model file, version 0 or 1."""
    file = MappedFile(path)
    reader = BoundedReader(file.view, file.name)
    reader.need(4 * len(FIELDS), "the header")
    facts: dict[str, Fact] = {}
    first = reader.u32("the first number")
    if first == MAGIC_V1:
        version = reader.u32("the version")
        if version != 1:
            raise FileProblem(f"{file.name}: is version {version} of llama2.c's format; 0 and 1 are read. Take the model as a GGUF file.")
        cfg = _config(reader, facts, version)
        order, reader.offset = ORDER_V1, HEADER_BYTES_V1
    else:
        reader.offset = 0
        cfg = _config(reader, facts, 0)
        order = ORDER_V0
    specs = tuple(llama.tensors(cfg))
    sources = _place(cfg, specs, order, file, reader.offset)
    facts["architecture"] = Fact("llama", f"the format of {file.name}")
    for name, value in (("norm_eps", NORM_EPS), ("rope_theta", THETA)):
        facts[name] = Fact(value, "assumed, as llama2.c does: its files do not say")
    about = About(facts, _tokenizer(path, cfg.vocab_size, facts))
    return Checkpoint(path=path, layout="llama2.c", config=cfg, specs=specs, sources=sources, files=[file], about=about)


def _config(reader: BoundedReader, facts: dict[str, Fact], version: int) -> llama.LlamaConfig:
    values: dict[str, int | float] = dict(zip(FIELDS, reader.scalars("i", len(FIELDS), "the header"), strict=True))
    tied = reader.boolean("shared_classifier") if version else values["vocab_size"] > 0
    if not version:
        values["vocab_size"] = abs(values["vocab_size"])
    r = ConfigReader(values, f"the header of {reader.name}", facts)
    width = r.integer("dim", "width", highest=MAX_WIDTH)
    num_heads = r.integer("n_heads", "num_heads", highest=MAX_HEADS)
    if width % num_heads:
        r.problem(f"dim is {width}, which n_heads {num_heads} does not divide")
    cfg = llama.LlamaConfig(
        width=width,
        num_layers=r.integer("n_layers", "num_layers", highest=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=r.integer("n_kv_heads", "num_kv_heads", highest=MAX_HEADS),
        head_width=max(1, width // num_heads),
        ffn_width=r.integer("hidden_dim", "ffn_width", highest=MAX_VOCABULARY),
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=r.integer("seq_len", "context_length", highest=MAX_CONTEXT),
        norm_eps=NORM_EPS,
        rope=Rope(THETA, max(1, width // num_heads)),
        tied_embeddings=bool(tied),
    )
    r.finish("This is no llama2.c model, or it is damaged.")
    check_config(cfg, reader.name, reader.size // 4)
    facts["tied_embeddings"] = Fact(cfg.tied_embeddings, f"the header of {reader.name}")
    return cfg


def _place(
    cfg: llama.LlamaConfig, specs: tuple[TensorSpec, ...], order: tuple[str, ...], file: MappedFile, offset: int
) -> dict[str, Source]:
    shapes = {spec.name: spec.shape for spec in specs}
    tables = 2 * cfg.context_length * (cfg.head_width // 2)
    size = offset + 4 * (sum(spec.count for spec in specs) + (tables if order is ORDER_V0 else 0))
    if size != file.size:
        raise FileProblem(
            f"{file.name}: has {file.size} bytes; a model with the numbers in its header takes {size}. It is cut short, damaged, or "
            "of another kind."
        )
    sources: dict[str, Source] = {}
    for pattern in order:
        if pattern == "rotary tables":
            _check_tables(cfg, file, offset)
            offset += 4 * tables
        names = [pattern.format(layer) for layer in range(cfg.num_layers)] if "{}" in pattern else [pattern]
        for name in (name for name in names if name in shapes):
            tensor = StoredTensor(name, F32, shapes[name], file, offset)
            sources[name] = tensor
            offset += tensor.num_bytes
    return sources


def _check_tables(cfg: llama.LlamaConfig, file: MappedFile, offset: int) -> None:
    """The tables are not used, so they must say what we assume: cos(1 * frequency) in the row of position 1."""
    if cfg.context_length < 2:
        return
    half = cfg.head_width // 2
    row = np.frombuffer(file.view, "<f4", half, offset + 4 * half)
    if not np.allclose(row, np.cos(cfg.rope.frequencies()), atol=1e-4):
        raise FileProblem(f"{file.name}: has rotary tables (at byte {offset}) of another base than {THETA:g}, which llama2.c assumes.")


def _tokenizer(path: Path, vocab_size: int, facts: dict[str, Fact]) -> TokenizerSource | None:
    """tok<size>.bin or tokenizer.bin beside the model."""
    for name in (f"tok{vocab_size}.bin", "tokenizer.bin"):
        if (path.parent / name).is_file() and path.name != name:
            facts["tokenizer"] = Fact("llama2.c", name)
            return TokenizerSource("llama2.c", path=path.parent / name)
    return None
