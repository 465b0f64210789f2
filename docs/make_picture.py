"""Draws docs/chat.svg: a real conversation with the default model, as the terminal shows it.

    python docs/make_picture.py                asks the model (`herd pull smollm2-135m-instruct` first) and draws what it answers
    python docs/make_picture.py reference      the same, answered by the oracle

Greedy, so that it draws the same again on the same instruction set.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

import herd

MODEL = "smollm2-135m-instruct"
QUESTIONS = ("Write one sentence about the sea.", "Give me three tips for a good night's sleep.")
WIDTH = 88
PICTURE = Path(__file__).with_name("chat.svg")
FETCHED_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)  # the picture shows the reader's own monospaced font


def main() -> None:
    console = Console(record=True, width=WIDTH, force_terminal=True, file=io.StringIO())
    model = herd.load(MODEL, backend=sys.argv[1] if len(sys.argv) > 1 else "cpu")
    console.print(Text.assemble(("$ ", "dim"), f"herd chat {MODEL}"))
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        console.print(Text.assemble(("\n> ", "bold cyan"), (question, "bold")))
        messages.append({"role": "user", "content": question})
        events = model.chat(messages, max_tokens=120, temperature=0.0)
        answer = "".join(event.text for event in events if event.type == "text")
        console.print(Text(answer.strip()))
        messages.append({"role": "assistant", "content": answer})
    drawing = console.export_svg(title="herd chat")
    PICTURE.write_text(FETCHED_FONT.sub("", drawing), encoding="utf-8")


if __name__ == "__main__":
    main()
