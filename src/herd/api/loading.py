"""From a name to a loaded model. With the terminal the only place that chooses a backend.

name | file | folder --find_model--> path --open--> checkpoint --backend--> engine --> Model
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from herd.api.model import Model
from herd.api.words import Words
from herd.errors import CapacityError, UsageError, did_you_mean
from herd.family.progress import Progress, silent
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.backends.base import Backend
    from herd.backends.torch import TorchBackend
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.disk import DiskPages
    from herd.engine.speculative import Speculation
    from herd.family.finding import Found
    from herd.family.release import Release
    from herd.models.weights import Leaf
    from herd.text.formats import Formats
    from herd.text.tokenizer import Tokenizer

BACKENDS = ("cpu", "torch", "reference")
DTYPES = ("float32", "bfloat16", "float16", "float64")
ACTIVATIONS = ("int8", "float32")
CACHE_DISK_BYTES = 8 << 30


def load(
    model: str | os.PathLike[str],
    *,
    backend: str = "cpu",
    threads: int | None = None,
    device: str = "cpu",
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
    cache_bytes  what keys and values may take at most; None: that quarter
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
    _check_choices(backend, device, dtype, activations)
    _check_count("threads", threads, 1024)
    _check_count("context", context, 2**31 - 1)
    _check_kv_cache(kv_cache)
    _check_count("parallel", parallel, 4096)
    _check_count("cache_bytes", cache_bytes, 2**50)
    _check_count("cache_disk_bytes", cache_disk_bytes, 2**50)
    if cache_disk_bytes is not None and cache_folder is None:
        raise UsageError("cache_disk_bytes says what the files in cache_folder may take, and there is none. Name a cache_folder too.")
    if chat_format is not None:
        from herd.text.formats import NAMES

        _check_choice("chat_format", chat_format, NAMES)
    if not isinstance(draft, str | os.PathLike):
        raise UsageError(f"draft is {draft!r:.60}; it must be 'off', 'lookup' or a model's name or path.")
    from herd.checkpoints.open import open_checkpoint
    from herd.family.finding import find_model

    found, adapter = run_behind(find_model(model, progress=progress), adapter, progress)
    checkpoint = open_checkpoint(found.path, None if mmproj is None else os.fspath(mmproj))
    try:
        with _no_collector():
            choices = _Choices(
                backend,
                threads,
                device,
                dtype,
                activations,
                adapter,
                context,
                draft,
                chat_format,
                parallel,
                kv_cache,
                cache_bytes,
                None if cache_folder is None else Path(cache_folder),
                CACHE_DISK_BYTES if cache_disk_bytes is None else cache_disk_bytes,
            )
            return _assemble(found, checkpoint, choices, progress)
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
    base = find_model(run.model, progress=progress)
    return replace(base, name=found.name), run.adapter if run.adapter is not None else adapter


@dataclass(frozen=True, slots=True)
class _Choices:
    """What `load` was asked for, checked."""

    backend: str
    threads: int | None
    device: str
    dtype: str | None
    activations: str
    adapter: str | os.PathLike[str] | None
    context: int | None
    draft: str | os.PathLike[str] = "off"
    chat_format: str | None = None
    parallel: int = 1
    kv_cache: str = "auto"
    cache_bytes: int | None = None
    cache_folder: Path | None = None
    cache_disk_bytes: int = CACHE_DISK_BYTES


def _assemble(found: Found, checkpoint: Checkpoint, choices: _Choices, progress: Progress) -> Model:
    """Checkpoint -> backend -> engine -> model."""
    from herd.engine.engine import Engine

    config = checkpoint.config
    if choices.context is not None and choices.context > config.context_length:
        raise UsageError(f"context is {choices.context}; {found.name} was trained for {config.context_length} tokens.")
    free = _if_larger_than_memory(found, checkpoint.num_bytes, choices) if choices.device == "cpu" else None
    words = words_of(found, checkpoint, choices.chat_format)
    context = choices.context or config.context_length
    with ExitStack() as opened:
        backend = _backend(checkpoint, choices, free, partial(progress, f"packing {found.name} on the disk"))
        opened.callback(backend.close)
        speculation = _speculation(choices, backend, words, context, progress)
        if speculation is not None:
            opened.callback(speculation.close)
        pages = _num_pages(backend, context, choices.parallel, choices.cache_bytes)
        disk = _disk(checkpoint, backend, choices)
        if disk is not None:
            opened.callback(disk.close)
        engine = Engine(
            backend,
            context_length=context,
            stop_ids=_stop_ids(checkpoint, words),
            speculation=speculation,
            num_pages=pages,
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


def _disk(checkpoint: Checkpoint, backend: Backend, choices: _Choices) -> DiskPages | None:
    """Where keys and values go that the memory has no room for; None: nowhere. Errors as `DiskPages`."""
    if choices.cache_folder is None:
        return None
    from herd.api.sessions import weights_digest
    from herd.engine.disk import DiskPages

    adapter = None if choices.adapter is None else Path(choices.adapter)
    identity = f"{weights_digest(checkpoint, adapter)} {backend.fingerprint} {backend.page_bytes()}"
    return DiskPages(choices.cache_folder.expanduser().absolute(), identity.encode(), backend.page_bytes(), choices.cache_disk_bytes)


def _num_pages(backend: Backend, context: int, parallel: int, cache_bytes: int | None) -> int | None:
    """Pages of the cache; None leaves it to the engine. `CapacityError` where `cache_bytes` hold none."""
    if parallel == 1 and cache_bytes is None:
        return None
    from herd.backends.base import PAGE_TOKENS
    from herd.engine.memory import available_bytes, default_num_pages

    size = backend.page_bytes()
    if cache_bytes is not None and cache_bytes < size:
        raise CapacityError(f"{cache_bytes:,} bytes are left for keys and values; {PAGE_TOKENS} tokens of them take {size:,}.")
    pages = default_num_pages(-(-context // PAGE_TOKENS) * parallel, size, available_bytes())
    return pages if cache_bytes is None else min(pages, cache_bytes // size)


def _speculation(choices: _Choices, backend: Backend, words: Words, context: int, progress: Progress) -> Speculation | None:
    """What tries drafted tokens, if it was asked for. `UsageError` for a draft model with another vocabulary."""
    if choices.draft == "off":
        return None
    from herd.engine.speculative import Speculation

    if choices.draft == "lookup":
        from herd.engine.lookup import LookupDrafter

        return Speculation(LookupDrafter())
    from herd.backends.base import PAGE_TOKENS
    from herd.checkpoints.open import open_checkpoint
    from herd.engine.draft_model import ModelDrafter
    from herd.engine.memory import available_bytes, default_num_pages
    from herd.family.finding import find_model

    found = find_model(choices.draft, progress=progress)
    with ExitStack() as opened:
        checkpoint = open_checkpoint(found.path)
        opened.callback(checkpoint.close)
        _check_vocabulary(found, checkpoint, backend, words_of(found, checkpoint), words)
        drafting = _backend(checkpoint, replace(choices, adapter=None))
        opened.callback(drafting.close)
        length = min(context, checkpoint.config.context_length)
        pages = default_num_pages(-(-length // PAGE_TOKENS), drafting.page_bytes(), available_bytes())
        drafter = ModelDrafter(drafting, length, pages, checkpoint.close)
        opened.pop_all()
        return Speculation(drafter)


def _check_vocabulary(found: Found, checkpoint: Checkpoint, backend: Backend, theirs: Words, ours: Words) -> None:
    """`UsageError` unless every token id means the same in both models."""
    size = checkpoint.config.vocab_size
    if size != backend.vocab_size:
        raise UsageError(f"{found.name} cannot draft for this model: it has {size} tokens, not {backend.vocab_size}.")
    one, other = theirs.tokenizer, ours.tokenizer
    if one is None or other is None:
        return
    for token in range(min(one.vocab_size, other.vocab_size)):
        if one.token_bytes(token) != other.token_bytes(token):
            spelled = f"{one.token_bytes(token)!r:.40} and {other.token_bytes(token)!r:.40}"
            raise UsageError(f"{found.name} cannot draft for this model: token {token} is {spelled}. Both need the same vocabulary.")


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


def _if_larger_than_memory(found: Found, num_bytes: int, choices: _Choices) -> int | None:
    """The free bytes, if they do not hold the weights and the cpu backend is to run those from the disk. `CapacityError`, before anything
    is allocated, where that cannot be done."""
    from herd.engine.memory import available_bytes

    free = available_bytes()
    if free is None or num_bytes <= free:
        return None
    if choices.backend == "cpu" and choices.adapter is None:
        return free
    raise CapacityError(
        f"The weights of {found.name} take {num_bytes:,} bytes; {free:,} are available. Choose a smaller model or format. "
        "The cpu backend without an adapter runs a model from the disk where memory does not hold it, at the speed of the disk."
    )


def _stop_ids(checkpoint: Checkpoint, words: Words) -> set[int]:
    """Tokens that end an answer: what the files name as ends, and every control token that is one by its name."""
    return {*checkpoint.stop_ids, *(words.tokenizer.stop_ids if words.tokenizer is not None else ())}


def words_of(found: Found, checkpoint: Checkpoint, wanted: str | None = None) -> Words:
    """Tokenizer and chat format. A file without a template has the format that the family knows for its release, if it is one."""
    source = checkpoint.tokenizer
    if source is None:
        return Words()
    from herd.text.tokenizer import load_tokenizer

    known = checkpoint.config.vocab_size
    tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=known)
    return Words(tokenizer, lambda: _formats(tokenizer, checkpoint.chat_template, found.release, wanted))


def _formats(tokenizer: Tokenizer, template: str | None, release: Release | None, wanted: str | None) -> Formats:
    """The published format (or the one that is wanted), and Meta's own."""
    from herd.text.formats import NAMES, choose_format, meta_format

    name = wanted or (release.chat_format if release is not None else None)
    chat_format = choose_format(tokenizer, template, wanted or (name if name in NAMES and template is None else None))
    return chat_format, None if chat_format is None else meta_format(chat_format, name)


def _nobody(done_bytes: int, total_bytes: int) -> None:
    """Hears of what nobody waits for."""


def _backend(checkpoint: Checkpoint, choices: _Choices, free: int | None = None, told: Callable[[int, int], None] = _nobody) -> Backend:
    """`free`: bytes of memory, where they do not hold the weights; `told` then hears of their packing."""
    from herd.backends.base import BackendOptions

    options = BackendOptions(
        threads=choices.threads, dtype=choices.dtype, activations=choices.activations, device=choices.device, kv_cache=choices.kv_cache
    )
    leaf: Leaf = checkpoint.leaf
    if choices.adapter is not None:
        from herd.checkpoints.adapter import open_adapter

        leaf = open_adapter(Path(choices.adapter), checkpoint.config).leaf_over(checkpoint.leaf)
    if choices.backend == "reference":
        from herd.backends.reference import ReferenceBackend

        return ReferenceBackend(checkpoint.config, leaf, options)
    if choices.backend == "torch":
        return _torch_backend()(checkpoint.config, leaf, options, checkpoint.release_pages)
    try:
        from herd.backends.cpu import CpuBackend, Origin
    except ImportError as error:
        advice = "Install herd with a C++ compiler or from a wheel, or use backend='reference', which is slow."
        raise UsageError(f"The native core of herd cannot be loaded here ({error}). {advice}") from error
    if choices.adapter is not None:
        return CpuBackend(checkpoint.config, leaf, options, checkpoint.release_pages)
    origin, larger = Origin(checkpoint.digest(), checkpoint.path), None
    if free is not None:
        from herd.backends.cpu.larger import Larger

        larger = Larger(free, told)
    return CpuBackend(checkpoint.config, leaf, options, checkpoint.release_pages, origin=origin, checkpoint=checkpoint, larger=larger)


def _torch_backend() -> type[TorchBackend]:
    """The backend's class. `UsageError` where torch is not installed or does not load."""
    try:
        from herd.backends.torch import TorchBackend
    except ImportError as error:
        advice = "Install it: pip install 'herd-llama[torch]', or use backend='cpu', which needs none."
        raise UsageError(f"backend 'torch' needs torch, which cannot be loaded here ({error}). {advice}") from error
    return TorchBackend


def _check_choices(backend: str, device: str, dtype: str | None, activations: str) -> None:
    """`UsageError` for a value that no backend has."""
    _check_choice("backend", backend, BACKENDS)
    _check_choice("activations", activations, ACTIVATIONS)
    if backend == "torch":
        _torch_backend().check_device(device)
    elif device != "cpu":
        raise UsageError(f"device is {device!r:.60}; the {backend} backend runs on 'cpu' only. GPUs are for backend='torch'.")
    if dtype is not None:
        _check_choice("dtype", dtype, DTYPES)


def _check_kv_cache(kv_cache: str) -> None:
    from herd.backends.base import check_kv_cache

    check_kv_cache(kv_cache)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r:.60}{did_you_mean(value, known)} It must be {' or '.join(map(repr, known))}.")


def _check_count(name: str, value: int | None, most: int) -> None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise UsageError(f"{name} is {value!r:.60}; it must be a whole number from 1 to {most}.")
