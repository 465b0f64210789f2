"""`herd show`: what a model is, what it will need, and where each of these facts comes from. Loads no weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from herd.cli.facts import Row, architecture_rows, release_sections
from herd.cli.options import Examples, offline_option
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.family.catalogue import Release
    from herd.family.finding import Found


_TITLE_WIDTH = 28
"""Columns for what a row is about; a longer title moves only its own value."""


@click.command(
    cls=Examples,
    short_help="Tell what a model is and needs.",
    examples="""
    herd show smollm2-135m-instruct
    herd show ./model.gguf --context 2048 --json
    herd show llama-3.1-70b-instruct       a known model need not be here
    """,
)
@click.argument("model")
@click.option("--context", type=int, metavar="N", help="Tokens to reckon memory for.  [default: the model's context]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def show(model: str, context: int | None, as_json: bool) -> None:
    """Tell what MODEL is: architecture, sizes, tokenizer, chat format, memory, and the source of each fact."""
    from herd.cli.output import print_json

    sections = _sections(model, context)
    if as_json:
        print_json(
            {
                _key(name): {_key(what): {"value": value, "source": source} for what, value, source in rows}
                for name, rows in sections.items()
            }
        )
        return
    width = min(max(len(what) for rows in sections.values() for what, _, _ in rows), _TITLE_WIDTH)
    for name, rows in sections.items():
        if not rows:
            continue
        click.echo(name)
        for what, value, source in rows:
            click.echo(f"  {what.ljust(width)}  {_plain(value)}{f'   [{source}]' if source else ''}")


def _key(title: str) -> str:
    """A title as a key of JSON: query_heads."""
    return title.lower().replace(" ", "_")


def _sections(model: str, context: int | None) -> dict[str, list[Row]]:
    from herd.family.catalogue import find
    from herd.family.finding import find_model

    try:
        found = find_model(model, is_fetched=False)
    except UsageError:
        return _from_catalogue(find(model), context)
    from herd.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(found.path)
    try:
        return _from_files(found, checkpoint, context)
    finally:
        checkpoint.close()


def _from_files(found: Found, checkpoint: Checkpoint, context: int | None) -> dict[str, list[Row]]:
    files = {key: (fact.value, fact.source) for key, fact in sorted(checkpoint.facts.items())}
    sections: dict[str, list[Row]] = {
        "Model": [("name", found.name, ""), ("path", str(found.path), ""), ("layout", checkpoint.layout, "")],
        "Architecture": architecture_rows(checkpoint.architecture, checkpoint.config),
        "Text": _text(checkpoint),
        "Memory": _memory(checkpoint.config, checkpoint.num_bytes, "stored weights", context, is_block=_is_block(checkpoint)),
        "Said by its files": [(key, value, source) for key, (value, source) in files.items()],
    }
    return sections | (release_sections(found.release) if found.release is not None else {})


def _from_catalogue(release: Release, context: int | None) -> dict[str, list[Row]]:
    """A known model that is not here: what the family says, and what its weights would take as published (16 bits each)."""
    from herd.dtypes import BF16
    from herd.models.sizes import weight_bytes

    here = release.unavailable if release.unavailable is not None else f"not here; fetch it with: herd pull {release.name}"
    sections: dict[str, list[Row]] = {"Model": [("name", release.name, ""), ("path", here, "")]}
    if release.shape is not None:
        config = release.config()
        sections["Architecture"] = architecture_rows(release.shape.architecture, config, release.sources)
        sections["Memory"] = _memory(config, weight_bytes(config, BF16), "16 bits a weight", context, is_block=False)
    elif context is not None:
        raise UsageError(f"--context cannot be reckoned: the shape of {release.name} is not known.")
    return sections | release_sections(release)


def _text(checkpoint: Checkpoint) -> list[Row]:
    source = checkpoint.tokenizer
    if source is None:
        return [("tokenizer", "none: token ids only", "no tokenizer in its files")]
    from herd.models.architecture import num_embeddings
    from herd.text.formats import choose_format
    from herd.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=num_embeddings(checkpoint.config)
    )
    chat_format = choose_format(tokenizer, checkpoint.chat_template)
    where = source.path.name if source.path is not None else f"{source.kind} metadata"
    return [
        ("tokenizer", tokenizer.description, where),
        ("chat format", chat_format.name if chat_format is not None else "none: a base model, or an unknown template", "chat template"),
        ("begins with", tokenizer.bos_id if tokenizer.adds_bos else "nothing", where),
        ("ends with", sorted({*checkpoint.stop_ids, *tokenizer.stop_ids}), where),
        ("sampling", dict(checkpoint.sampling_defaults) or "no recommendation", "generation defaults"),
    ]


def _is_block(checkpoint: Checkpoint) -> bool:
    return any(checkpoint.dtype(spec.name).is_block for spec in checkpoint.specs)


def _memory(config: Any, weights: int, what: str, context: int | None, *, is_block: bool) -> list[Row]:
    """What the default backend needs. Its cache is float16 where block-quantised weights meet int8 activations, else float32."""
    from herd.backends.base import PAGE_TOKENS, BackendOptions
    from herd.dtypes import F16, F32
    from herd.models.architecture import classifying
    from herd.models.sizes import buffer_bytes, kept_cache_bytes

    if context is not None and not 1 <= context <= config.context_length:
        raise UsageError(f"--context is {context}; it must be from 1 to the model's {config.context_length}.")
    if classifying(config) is not None:
        return [("weights", weights, what)]
    tokens = context or config.context_length
    options = BackendOptions()
    dtype = F16 if is_block and options.activations == "int8" else F32
    cache = sum(kept_cache_bytes(config, tokens, PAGE_TOKENS, options.max_step_tokens, dtype).values())
    buffers = buffer_bytes(config, options.max_step_tokens, options.max_step_outputs)
    return [
        ("weights", weights, what),
        ("cache", cache, f"{tokens:,} tokens of keys and values, {8 * dtype.block_bytes} bits each"),
        ("buffers", buffers, f"a step of {options.max_step_tokens} tokens"),
        ("together", weights + cache + buffers, "bytes"),
    ]


def _plain(value: Any) -> str:
    """A value for people: digits grouped, settings as words, long things cut."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key.replace('_', ' ')} {item}" for key, item in value.items())
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 160 else f"{text[:157]}..."
