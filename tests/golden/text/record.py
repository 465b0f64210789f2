"""Records what the official libraries say; README.md tells when and how it was run. Not a test, and not run by any.

    python tests/golden/text/record.py SHARED LLAMA_MODELS

SHARED: the folder with `data/tokenizers`. LLAMA_MODELS: the unpacked wheel `llama_models` 0.3.0.
"""

from __future__ import annotations

import importlib
import io
import json
import random
import struct
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
TEXTS = (HERE / "texts.txt").read_text("utf-8").split("\n===\n")
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "You are a helpful assistant"), ("user", "Hello")],
    [("system", "Be brief."), ("user", "A"), ("assistant", "B"), ("user", "C")],
    [("user", "naïve 日本 🙂"), ("assistant", "1234567\n\n  x"), ("user", "<|eot_id|> <|eot|> [/INST] </s>")],
    [("user", "What is 2+2?"), ("tool", '{"result": "4 ü"}')],
]


def main(shared: Path, llama_models: Path) -> None:
    """Writes small.model, small.json and real.json beside this file."""
    sys.path.insert(0, str(llama_models))
    _small()
    files = shared / "data" / "tokenizers"
    real: dict[str, Any] = {"llama2": _sentencepiece(files / "llama2" / "tokenizer.model", TEXTS)}
    for name in ("llama3", "llama4"):
        tokenizer, chat_format = _meta(name, llama_models)
        official = tokenizer.Tokenizer(files / name / "tokenizer.model")
        real[name] = [official.encode(text, bos=False, eos=False) for text in TEXTS]
        real[f"{name} chat"] = [_chat(chat_format.ChatFormat(official), turns) for turns in CONVERSATIONS]
    real["conversations"] = CONVERSATIONS
    (HERE / "real.json").write_text(json.dumps(real, ensure_ascii=False), "utf-8")


def _chat(chat_format: Any, turns: list[tuple[str, str]]) -> list[int]:
    messages = [types.SimpleNamespace(role=role, content=text, context=None, tool_calls=[], stop_reason=None) for role, text in turns]
    ids: list[int] = chat_format.encode_dialog_prompt(messages).tokens
    return ids


def _meta(name: str, llama_models: Path) -> tuple[Any, Any]:
    """Meta's two modules, without the packages (of pictures and models) that this does not need."""
    package = f"llama_models.{name}"
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(llama_models / "llama_models" / name)]
    unneeded = ["PIL", "PIL.Image", *(f"{package}.{module}" for module in ("args", "datatypes", "preprocess") if name == "llama4")]
    for module in unneeded:
        stub: Any = types.ModuleType(module)
        stub.Image = stub.VisionArgs = stub.LLMInput = stub.ResizeNormalizeImageTransform = stub.VariableSizeImageTransform = _Record
        sys.modules.setdefault(module, stub)
    return importlib.import_module(f"{package}.tokenizer"), importlib.import_module(f"{package}.chat_format")


class _Record(types.SimpleNamespace):
    """Stands for classes of which only the fields, or nothing, are used."""

    Image = None


def _sentencepiece(path: Path, texts: list[str]) -> list[list[int]]:
    import sentencepiece

    return [list(ids) for ids in sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(texts)]


def _small() -> None:
    """A vocabulary trained on this project's documents and made like Llama's: runs of 2 to 16 spaces, scored -1e9."""
    import sentencepiece

    written = io.BytesIO()
    documents = [REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
    lines = "\n".join(path.read_text("utf-8") for path in documents).split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + ["    " * 9] * 50),
        model_writer=written,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    path = HERE / "small.model"
    data = written.getvalue()
    for length in range(2, 17):
        piece = b"\x0a" + bytes((3 * length,)) + "▁".encode() * length + b"\x15"
        at = data.find(piece) + len(piece)
        if piece in data:
            data = data[:at] + struct.pack("<f", -1e9) + data[at + 4 :]
        else:
            data += b"\x0a" + bytes((len(piece) + 4,)) + piece + struct.pack("<f", -1e9)
    path.write_bytes(data)
    source = random.Random(7)
    letters = "abc def the of and  \n\t.,'0123456789éß日本語🙂▁" + "    "
    texts = TEXTS + ["".join(source.choice(letters) for _ in range(source.randrange(60))) for _ in range(300)]
    texts += [" " * count + end for count in range(1, 40) for end in ("", "the", "日", "\n")]
    ids = _sentencepiece(path, texts)
    (HERE / "small.json").write_text(json.dumps({"texts": texts, "ids": ids}, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
