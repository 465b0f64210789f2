"""A server in front of real engine processes, whose models are tiny and random."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herd.providers.pool import EnginePool, Hosted
from herd.providers.process import EngineOptions
from herd.server.app import build
from herd.server.house import make_house
from herd.server.keys import Keys
from herd.server.running import Front, listen
from herd.server.settings import Settings
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

SPECIALS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
    *("<|header_start|>", "<|header_end|>", "<|eot|>"),
)
CONTEXT = 4096


def write_model(folder: Path) -> Path:
    """A random model, one token for each byte, with the control tokens of Llama 3 and 4. What it says is noise; that is what makes it a
    test of what an answer is held to."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    cfg = tiny_llama(vocab_size=len(alphabet) + len(SPECIALS), num_layers=1, context_length=CONTEXT)
    write_huggingface(folder, cfg, random_leaves(cfg))
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True) for special in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIALS[0], "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def engines_behind(
    folder: Path, formats: Mapping[str, str], load: Mapping[str, Any] | None = None, keys: Path | None = None, **settings: Any
) -> Iterator[str]:
    """The address of a server with a model for each name, all from one folder, each with its own chat format. They are loaded when they are
    asked for, with `load` besides. keys: the file of those that are needed."""
    chosen = Settings(**{"port": 0, "grace_s": 0.2, "need_key": keys is not None, **settings})
    listener = listen(chosen)
    fronts: list[Front] = []
    made = threading.Event()
    hosted = [
        Hosted(name=name, options=EngineOptions(model=str(folder), load={**_load(each), **(load or {})})) for name, each in formats.items()
    ]

    async def serve() -> None:
        pool = EnginePool(hosted)
        house = make_house(pool, chosen, Keys(keys))
        try:
            await pool.start([hosted[0].name])
            fronts.append(Front(house, build(house)))
            made.set()
            await fronts[0].serve(listener)
        finally:
            made.set()
            await pool.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    assert made.wait(60) and fronts, "the engine did not start"
    try:
        fronts[0].wait_started(10)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        fronts[0].stop(at_once=True)
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


def _load(chat_format: str) -> dict[str, Any]:
    return {"backend": "cpu", "threads": 1, "parallel": 8, "chat_format": chat_format}
