"""Records what Meta's `ChatFormat` makes of conversations with tools and pictures; README.md tells when and how it was run.

    python tests/golden/text/record_chats.py SHARED LLAMA_MODELS

SHARED: the folder with `data/tokenizers`. LLAMA_MODELS: the unpacked wheel `llama_models` 0.3.0 (which needs torch and pydantic).
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CALL = {"id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Zürich \\"x\\"", "days": [1, 2.5, true, null]}'}}
SEARCH = {"id": "2", "function": {"name": "brave_search", "arguments": '{"query": "price of gold"}'}}
CODE = {"id": "3", "function": {"name": "code_interpreter", "arguments": '{"code": "print(1)\\n"}'}}
PICTURE = {"type": "image"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"role": "system", "content": " Be brief. \n"},
        {"role": "user", "content": "\n Hi "},
        {"role": "assistant", "content": "Ho"},
    ],
    "json": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": "25 °C"}'},
        {"role": "assistant", "content": "25 °C."},
        {"role": "user", "content": "Thanks <|eot_id|> <|eom|>"},
    ],
    "beside": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]}],
    "search": [{"role": "user", "content": "Gold?"}, {"role": "assistant", "content": "", "tool_calls": [SEARCH], "goes_on": True}],
    "code": [{"role": "user", "content": "Run"}, {"role": "assistant", "content": "", "tool_calls": [CODE], "goes_on": True}],
    "goes on": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "goes_on": True}, {"role": "tool", "content": "c"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "end"}]}],
    "picture": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is this?"}]}],
    "pictures": [{"role": "user", "content": [{"type": "text", "text": " a "}, PICTURE, {"type": "text", "text": "b"}, PICTURE]}],
}
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (4, 4), (16, 1))


def main(shared: Path, llama_models: Path) -> None:
    """Writes chats.json beside this file."""
    sys.path.insert(0, str(llama_models))
    # Resizing needs torchvision, and which ids a picture becomes does not need resizing.
    unneeded: Any = types.ModuleType("llama_models.llama4.preprocess")
    unneeded.ResizeNormalizeImageTransform = unneeded.VariableSizeImageTransform = None
    sys.modules[unneeded.__name__] = unneeded
    recorded: dict[str, Any] = {"conversations": CONVERSATIONS}
    for name in ("llama3", "llama4"):
        tokenizer = importlib.import_module(f"llama_models.{name}.tokenizer")
        chats = importlib.import_module(f"llama_models.{name}.chat_format")
        official = tokenizer.Tokenizer(shared / "data" / "tokenizers" / name / "tokenizer.model")
        chat_format = chats.ChatFormat(official)
        for notation in ("json", "python_list"):
            recorded[f"{name} {notation}"] = {
                key: _ids(chat_format, turns, notation)
                for key, turns in CONVERSATIONS.items()
                if name == "llama3" or not key.startswith("picture")
            }
    recorded["llama4 grids"] = [[rows, columns, _runs(_picture(chats, official, rows, columns))] for rows, columns in GRIDS]
    (HERE / "chats.json").write_text(json.dumps(recorded, ensure_ascii=False), "utf-8")


def _ids(chat_format: Any, turns: list[dict[str, Any]], notation: str) -> list[int]:
    datatypes = importlib.import_module("llama_models.datatypes")
    messages = [_message(datatypes, turn) for turn in turns]
    ids: list[int] = chat_format.encode_dialog_prompt(messages, datatypes.ToolPromptFormat(notation)).tokens
    return ids


def _message(datatypes: Any, turn: dict[str, Any]) -> Any:
    content = turn["content"]
    if isinstance(content, list):
        content = [
            datatypes.RawTextItem(text=part["text"]) if part["type"] == "text" else datatypes.RawMediaItem(data=_png()) for part in content
        ]
    calls = [
        datatypes.ToolCall(call_id=call["id"], tool_name=call["function"]["name"], arguments=json.loads(call["function"]["arguments"]))
        for call in turn.get("tool_calls", ())
    ]
    reason = datatypes.StopReason.end_of_message if turn.get("goes_on") else None
    return datatypes.RawMessage.model_construct(role=turn["role"], content=content, tool_calls=calls, stop_reason=reason, context=None)


def _png() -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.new("RGB", (2, 2)).save(written, "PNG")
    return written.getvalue()


def _picture(chats: Any, official: Any, rows: int, columns: int) -> list[int]:
    import torch

    arguments = importlib.import_module("llama_models.llama4.args")
    size = arguments.Size(height=336, width=336)
    patch = arguments.Size(height=14, width=14)
    vision = arguments.VisionArgs.model_construct(image_size=size, patch_size=patch, pixel_shuffle_ratio=0.5)
    chat_format = chats.ChatFormat(official)
    chat_format.vision_args = vision
    count = rows * columns
    tiles = torch.zeros(count + (count > 1), 3, 336, 336)
    ids: list[int] = chat_format._encode_image(chats.TransformedImage(image_tiles=tiles, aspect_ratio=(rows, columns)))
    return ids


def _runs(ids: list[int]) -> list[tuple[int, int]]:
    """(id, how often in a row)."""
    return [(token, len(list(run))) for token, run in itertools.groupby(ids)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
