"""From a name to a loaded model.

name | file | folder --find_model--> path --open--> checkpoint --backend--> engine --> Model
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from herd.api.choices import Choices
from herd.api.model import Model
from herd.api.words import stop_ids, words_of
from herd.errors import UsageError
from herd.family.progress import Progress, silent

if TYPE_CHECKING:
    from herd.backends.base import Backend
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.disk import DiskPages
    from herd.engine.speculative import Speculation
    from herd.family.finding import Found


def load(
    model: str | os.PathLike[str],
    *,
    backend: str = "cpu",
    threads: int | None = None,
    device: str = "cpu",
    tensor_parallel: int = 1,
    dtype: str | None = None,
    activations: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    context: int | None = None,
    draft: str | os.PathLike[str] = "off",
    mmproj: str | os.PathLike[str] | None = None,
    chat_format: str | None = None,
    parallel: int = 1,
    cache_bytes: int | None = None,
    kv_cache: str = "auto",
    cache_folder: str | os.PathLike[str] | None = None,
    cache_disk_bytes: int | None = None,
    progress: Progress = silent,
) -> Model:
    """A model, ready to answer.

    model        a name that `herd models` lists (fetched if it is not here, unless offline), a .gguf file, a folder in
                 Hugging Face or Meta layout, a llama2.c .bin file, or the folder of a finished run of training
    backend      "cpu", "torch" (CPUs and GPUs; needs the extra herd-llama[torch]), or "reference" (numpy; slow, the definition
                 of right)
    threads      None: one per physical core that this process may use ("torch": as torch itself decides)
    device       for "torch": "cpu", "cuda", or one of several GPUs, "cuda:1"
    tensor_parallel  for "torch": so many GPUs of this machine hold a part of each layer, with a process for each (device "cuda"; "cpu" to
                 try it)
    dtype        convert plain weights to this; None: as stored. "torch" computes in it too
    activations  what block-quantised weights are multiplied with: "int8" (fast; the default of "cpu") or "float32" (exact; the
                 default of the others, the only way of "torch")
    adapter      a LoRA adapter's folder, in PEFT's layout
    context      tokens of prompt and answer together; None: what the model was trained for, if memory allows
    draft        tries several tokens in one step, which changes no answer: "lookup" guesses them from the text so far; another model,
                 smaller and with the same vocabulary, runs ahead; "off"
    mmproj       the GGUF file with the part of a Llama 4 that sees pictures; None: `mmproj-*.gguf` beside the text, if there is one;
                 "off": text only
    chat_format  how the model was taught to read conversations ("llama3.1", ...), for files that do not say, as Meta's own layout;
                 None: the template in its files, or what its release has
    parallel     for how many answers of full length at once the cache has room, as far as a quarter of the free memory holds them. More
                 can be asked at once: they share it, or wait
    cache_bytes  what keys and values may take at most, pages on their way to and from `cache_folder` included; None: that quarter
    kv_cache     how keys and values are kept: "float32", "float16", "int8" or "int4"; "auto": float16 where weights are quantised and
                 activations int8, else what is computed in. int8 halves the cache of float16 and loses next to nothing
    cache_folder a folder, of this user alone, for keys and values of prompts that the memory has no room for, or a later process asks
                 again; they are read instead of computed, and give the same bits. Several models may share it
    cache_disk_bytes  what all files in `cache_folder` may take; what was used longest ago goes first. None: 8 GiB
    progress     is told while the model is fetched

    `UsageError` for an argument, `FileProblem` for the files, `CapacityError` for memory or disk, `ProviderError` for the network.
    """
    if activations is None:
        activations = "int8" if backend == "cpu" else "float32"
    choices = Choices(
        backend=backend,
        threads=threads,
        device=device,
        tensor_parallel=tensor_parallel,
        mmproj=None if mmproj is None else os.fspath(mmproj),
        dtype=dtype,
        activations=activations,
        adapter=adapter,
        context=context,
        draft=draft,
        chat_format=chat_format,
        parallel=parallel,
        kv_cache=kv_cache,
        cache_bytes=cache_bytes,
        cache_folder=None if cache_folder is None else Path(cache_folder),
        cache_disk_bytes=cache_disk_bytes,
    )
    return _loaded(model, choices, progress)


def _loaded(model: str | os.PathLike[str], choices: Choices, progress: Progress) -> Model:
    """What the name stands for, found, opened and put together."""
    from herd.checkpoints.open import open_checkpoint
    from herd.checkpoints.trained import format_taught
    from herd.family.finding import find_model

    named = find_model(model, progress=progress)
    found, adapter = run_behind(named, choices.adapter, progress)
    choices = replace(choices, chat_format=choices.chat_format or format_taught(named.path))
    checkpoint = open_checkpoint(found.path, choices.mmproj)
    try:
        with _no_collector():
            return _assemble(found, checkpoint, replace(choices, adapter=adapter), progress)
    except BaseException:
        checkpoint.close()
        raise


def run_behind(
    found: Found, adapter: str | os.PathLike[str] | None, progress: Progress = silent
) -> tuple[Found, str | os.PathLike[str] | None]:
    """What the folder of a finished run, or of an adapter, stands for: the model and the adapter over it. Other models as they are."""
    from herd.checkpoints.trained import trained_in
    from herd.family.finding import find_model

    run = trained_in(found.path)
    if run is None:
        return found, adapter
    if run.adapter is not None and adapter is not None:
        raise UsageError(f"{found.name} is an adapter over {run.model} already. Merge it first: herd tune merge.")
    base, below = run_behind(find_model(run.model, progress=progress), None, progress)
    if below is not None:
        raise UsageError(f"{found.name} is an adapter over {run.model}, which is an adapter itself. Merge that first: herd tune merge.")
    return replace(base, name=found.name), run.adapter if run.adapter is not None else adapter


def _assemble(found: Found, checkpoint: Checkpoint, choices: Choices, progress: Progress) -> Model:
    """Checkpoint -> backend -> engine -> model."""
    from herd.api.caching import cache_room, open_disk
    from herd.api.choosing import if_larger_than_memory, make_backend
    from herd.api.drafting import speculation_for
    from herd.backends.base import group_page_bytes
    from herd.engine.engine import Engine
    from herd.engine.memory import available_bytes

    config = checkpoint.config
    if choices.context is not None and choices.context > config.context_length:
        raise UsageError(f"context is {choices.context}; {found.name} was trained for {config.context_length} tokens.")
    free = if_larger_than_memory(found, checkpoint.num_bytes, choices)
    words = words_of(found, checkpoint, choices.chat_format)
    context = choices.context or config.context_length
    with ExitStack() as opened:
        backend = make_backend(checkpoint, choices, free, partial(progress, f"packing {found.name} on the disk"))
        opened.callback(backend.close)
        speculation = speculation_for(choices, backend, words, context, progress)
        if speculation is not None:
            opened.callback(speculation.close)
        room = cache_room(context, backend.groups, group_page_bytes(backend), choices, available_bytes())
        disk = open_disk(checkpoint, backend, choices, room)
        if disk is not None:
            opened.callback(disk.close)
        engine = Engine(
            backend,
            context_length=context,
            stop_ids=stop_ids(checkpoint, words),
            speculation=speculation,
            num_pages=room.num_pages,
            disk=disk,
        )
        # For programs that end, or lose a model, without closing it. The engine outlives its model in streams that are still read.
        weakref.finalize(engine, _release, backend, checkpoint, speculation, disk)
        model = Model(found, checkpoint, engine, words, None if choices.adapter is None else Path(choices.adapter))
        opened.pop_all()
        return model


def _release(backend: Backend, checkpoint: Checkpoint, speculation: Speculation | None, disk: DiskPages | None) -> None:
    """Gives back what a model held; nothing happens if it was closed."""
    backend.close()
    checkpoint.close()
    if speculation is not None:
        speculation.close()
    if disk is not None:
        disk.close()


@contextmanager
def _no_collector() -> Iterator[None]:
    """A vocabulary is hundreds of thousands of small objects; while it is read the cycle collector would walk them again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
