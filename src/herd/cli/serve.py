"""`herd serve`: models behind the APIs that every client knows."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import LOADING, Examples, given, loading_options
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.providers.pool import EnginePool, Hosted, ServedModel
    from herd.providers.process import EngineOptions
    from herd.server.keys import Keys
    from herd.server.settings import Settings

LIBRARIES = ("h11", "httptools", "msgpack", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn")
NAMED = ("host", "port", "adapter_folder", "cache_folder", "allow_origin", "allow_host", "image_host", "log_prompts", "need_key")
"""Settings of the server that have an option of their own."""


def model_options(function: Any) -> Any:
    """How models are loaded; adapters have names here, so their option is this command's own."""
    function = loading_options(function)
    function.__click_params__ = [each for each in function.__click_params__ if each.name != "adapter"]
    return function


@click.command(
    cls=Examples,
    short_help="Serve models to OpenAI's, Anthropic's and Ollama's clients.",
    examples="""
    herd serve                                        the default model, for this computer, on port 8000
    herd serve llama-3.2-1b-instruct --port 9000
    herd serve small=./small.gguf large=./large.gguf --memory 12GiB
    herd serve ./model.gguf --adapter poems=./runs/poems      asked for as model:poems
    herd serve llama-3.1-8b-instruct --ray 4 --threads 16     on the machines of a Ray cluster
    herd keys create alice && herd serve --host 0.0.0.0       for others, who bring a key
    """,
)
@click.argument("models", nargs=-1, metavar="[NAME=]MODEL...")
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1, this computer only]")
@click.option("--port", type=int, metavar="N", help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option(
    "--key/--no-key", "need_key", default=None, help="Whether requests bring a key of `herd keys`.  [default: not on this computer]"
)
@click.option(
    "--keys-file", type=click.Path(path_type=Path, dir_okay=False), help="Where keys are kept.  [default: HERD_HOME/server/keys.json]"
)
@click.option("--memory", metavar="SIZE", help="What all loaded models may take; the one not used for longest goes first.")
@click.option(
    "--parallel", type=int, default=16, show_default=True, metavar="N", help="Full contexts that the cache has room for, if memory allows."
)
@click.option("--ray", "replicas", type=click.IntRange(min=1), metavar="N", help="Run N replicas of each model under Ray Serve.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[[MODEL:]NAME=]FOLDER",
    help="A LoRA adapter, or the run that learned it. Can be repeated.",
)
@click.option(
    "--adapter-folder", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Adapters that may be loaded while it runs."
)
@click.option(
    "--cache-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep what prompts cost on the disk: asked again, they are read, after a restart too.",
)
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Web pages that may call this server. Can be repeated.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name that this server answers under. Can be repeated.")
@click.option(
    "--image-host", multiple=True, metavar="NAME[:PORT]", help="A host that pictures may be fetched from, *.NAME for all below. Repeatable."
)
@click.option("--log-prompts", is_flag=True, default=None, help="Write prompts to the log.")
@click.option("--quiet", is_flag=True, help="Log problems only, and show no page at the start.")
@click.option("--settings", "file", type=click.Path(path_type=Path, dir_okay=False), help="Settings of the server, as TOML.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="One setting of the server. Can be repeated.")
@model_options
def serve(
    models: tuple[str, ...],
    memory: str | None,
    parallel: int,
    replicas: int | None,
    adapters: tuple[str, ...],
    keys_file: Path | None,
    quiet: bool,
    file: Path | None,
    changes: tuple[str, ...],
    **options: Any,
) -> None:
    """Serve MODELs. The first is loaded at once, and the others if memory allows; NAME= gives one another name."""
    _need_libraries()
    _check_replicas(replicas, memory)
    from herd.cli.serve_models import hosted_models, measured, memory_budget
    from herd.family.catalogue import DEFAULT_NAME
    from herd.server.access_log import start_log
    from herd.server.running import listen, raise_file_limit
    from herd.server.settings_file import read_settings

    named = {name: options.pop(name) for name in NAMED}
    settings = read_settings(file, changes, {name: each for name, each in named.items() if each not in (None, ())})
    settings, keys = _with_keys(settings, keys_file, named["need_key"])
    raise_file_limit(settings)
    with listen(settings) as listener:
        load = {**given(options, LOADING), "parallel": parallel, **_disk_cache(settings)}
        hosted = hosted_models(models or (DEFAULT_NAME,), adapters, load)
        budget = None if replicas else memory_budget(memory, hosted)
        start_log(sys.stderr, quiet)
        _run(listener, settings, keys, hosted if budget is None else list(map(measured, hosted)), budget, replicas, quiet)


def _run(
    listener: socket.socket,
    settings: Settings,
    keys: Keys,
    hosted: Sequence[Hosted],
    budget: int | None,
    replicas: int | None,
    quiet: bool,
) -> None:
    """Loads the models and serves them until a signal ends it."""
    from herd.cli.serve_jobs import TuneJobs
    from herd.cli.serve_models import loaded_at_start
    from herd.cli.start_page import start_page
    from herd.server.running import address, run

    url, names = address(listener), loaded_at_start(hosted, budget)
    pool = _pool(hosted, budget, replicas)
    if not quiet:
        click.echo(f"Loading {hosted[0].name} for {url} ...", err=True)
    run(
        listener,
        settings,
        keys,
        aclosing(pool),
        lambda pool: _start(pool, names),
        lambda house: None if quiet else click.echo(start_page(house, url, hosted[0].name)),
        jobs=TuneJobs({each.name: each.options.model for each in hosted}),
    )


def _need_libraries() -> None:
    from importlib.util import find_spec

    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UsageError(f"herd serve needs {', '.join(missing)}, which this installation lacks. Install: pip install 'herd-llama[server]'")


def _check_replicas(replicas: int | None, memory: str | None) -> None:
    from importlib.util import find_spec

    if replicas is None:
        return
    if find_spec("ray") is None:
        raise UsageError("--ray needs ray, which this installation lacks. Install: pip install 'herd-llama[server,ray]'")
    if memory is not None:
        raise UsageError("--memory is about this computer, and --ray runs models on others too. Say one of them.")


def _with_keys(settings: Settings, file: Path | None, wish: bool | None) -> tuple[Settings, Keys]:
    """Whether keys are needed, and the keys. `UsageError` for a server that others reach and nobody guards, unless that is wished."""
    from dataclasses import replace

    from herd.server.keys import Keys, keys_file, read_keys

    place = file or keys_file()
    is_needed = settings.need_key or (wish is None and not settings.is_loopback)
    if not is_needed:
        return settings, Keys(None)
    if not (place.exists() and read_keys(place)):
        raise UsageError(
            f"{settings.host} is reached by others, and there is no key yet. Make one with `herd keys create NAME`, or say --no-key."
            if not settings.is_loopback
            else f"Keys are asked for, and there are none in {place}. Make one with `herd keys create NAME`."
        )
    return replace(settings, need_key=True), Keys(place)


def _disk_cache(settings: Settings) -> dict[str, Any]:
    """What engines are told of the folder that their pages go to."""
    if settings.cache_folder is None:
        return {}
    limit = {} if settings.cache_disk_bytes is None else {"cache_disk_bytes": settings.cache_disk_bytes}
    return {"cache_folder": str(settings.cache_folder.expanduser().absolute()), **limit}


async def _start(pool: EnginePool, names: Sequence[str]) -> None:
    """Loads the models of the start, and waits for their first word about memory, which the page shows."""
    import asyncio

    await pool.start(names)
    for _ in range(20):
        if all(gauges.memory_bytes for gauges in pool.gauges().values()):
            return
        await asyncio.sleep(0.05)


def _pool(hosted: Sequence[Hosted], budget: int | None, replicas: int | None) -> EnginePool:
    from herd.providers.pool import EnginePool
    from herd.providers.supervisor import Supervisor

    served: Callable[[EngineOptions], ServedModel] = Supervisor
    if replicas is not None:
        from herd.providers.replicas import Replicas

        served = partial(Replicas, count=replicas)
    return EnginePool(hosted, budget_bytes=budget, default=hosted[0].name, served=served)
