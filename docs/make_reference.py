"""Writes docs/reference/ from the code: commands, Python names, settings, training, endpoints, errors, number formats and the family.

python docs/make_reference.py            writes the pages that changed
python docs/make_reference.py --check    exit code 1 and their names when any is stale
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

REFERENCE = Path(__file__).resolve().parent / "reference"
WIDTH = 100
NOTE = "<!-- Written by docs/make_reference.py from the code; edit there. -->\n"


def commands() -> str:
    """Every command's help, as `herd COMMAND --help` prints it on a wide terminal."""
    from herd.cli.main import main as herd

    parts = ["# Commands\n"]
    for context in walk(context_of(herd, "herd", None)):
        parts.append(f"## {context.command_path}\n\n```text\n{help_text(context)}\n```\n")
    return "\n".join(parts)


def walk(context: click.Context) -> Iterator[click.Context]:
    """This command and all below it, in the order in which they are listed."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            below = context.command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from walk(context_of(below, name, context))


def context_of(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """As the command line makes it, but for a terminal of fixed width."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


def help_text(context: click.Context) -> str:
    return context.get_help().strip("\n")


def python() -> str:
    """What `import herd` offers."""
    import herd

    parts = ["# Python\n", described("herd.load", herd.load)]
    parts.append(f"## herd.Model\n\n{prose(herd.Model)}\n")
    for name, member in vars(herd.Model).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            parts.append(f"### Model.{name}\n\n{prose(member)}\n")
        elif inspect.isfunction(member):
            parts.append(described(f"Model.{name}", member, level=3))
    return "\n".join(parts)


def described(name: str, function: Any, level: int = 2) -> str:
    """A heading, the signature and the docstring."""
    return f"{'#' * level} {name}\n\n```python\n{name}{signature(function)}\n```\n\n{prose(function)}\n"


def signature(function: Any) -> str:
    """Parameters with their types as written in the code, without `self`."""
    found = inspect.signature(function)
    shown: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(declared(parameter))
    returns = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    one_line = f"({', '.join(shown)}){returns}"
    return one_line if len(one_line) <= WIDTH else "\n".join(["(", *(f"    {one}," for one in shown), f"){returns}"])


def declared(parameter: inspect.Parameter) -> str:
    """`name: type = default`; a function as a default is shown by its name."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {parameter.default.__name__ if callable(parameter.default) else repr(parameter.default)}"


def settings() -> str:
    """The dataclasses whose fields a caller may set, or will meet when a model is shown."""
    from herd.backends.base import BackendOptions
    from herd.models.llama import LlamaConfig
    from herd.sampling.params import SamplingParams
    from herd.server.settings import RequestLimits, Settings

    parts = ["# Settings\n"]
    for kind in (SamplingParams, BackendOptions, LlamaConfig, Settings, RequestLimits):
        parts.append(f"## {kind.__name__}\n\n```text\n{inspect.getdoc(kind)}\n```\n")
        rows = [f"| `{field.name}` | {cell(field.type)} | {cell(default(field))} |" for field in dataclasses.fields(kind)]
        parts.append("\n".join(["| field | type | default |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def training() -> str:
    """What `--config` and `--set` of `herd tune` and `herd train` take: every dataclass of settings in training, in one table each."""
    from herd.training.settings.reading import described, shown, told

    parts = [
        "# Settings of training\n",
        "A recipe's settings are a TOML file (`--config`) and `--set NAME=VALUE`; where a field is a table, its name and a dot stand "
        "before those of the table: `loop.schedule.lr`. How they are read: [runs](../how-to/runs.md).\n",
    ]
    for kind in training_kinds():
        head = (inspect.getdoc(kind) or "").partition("\n")[0]
        known, helps = {setting.name: setting for setting in described(kind)}, told(kind)
        rows = []
        for field in sorted(dataclasses.fields(kind), key=lambda each: each.name not in known):
            setting = known.get(field.name)
            own = "{}" if field.default_factory is dataclasses.MISSING else shown(field.default_factory())
            table = ("a table", "see there" if own == "{}" else f"see there, but {own[1:-1]}", helps.get(field.name, ""))
            cells = table if setting is None else (setting.kind, setting.default, setting.help)
            rows.append(f"| `{field.name}` | {' | '.join(cell(each) for each in cells)} |")
        parts.append(
            "\n".join([f"## {kind.__name__}\n", head + "\n", "| field | type | default | meaning |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def training_kinds() -> list[type]:
    """The dataclasses in training/settings/ and of schedules, by name."""
    import importlib

    folder = REFERENCE.parent.parent / "src" / "herd" / "training" / "settings"
    found: dict[str, type] = {}
    names = sorted(f"settings.{path.stem}" for path in folder.glob("*.py") if path.stem not in ("__init__", "reading"))
    for name in [*names, "schedules"]:
        module = importlib.import_module(f"herd.training.{name}")
        found |= {key: value for key, value in vars(module).items() if dataclasses.is_dataclass(value) and isinstance(value, type)}
    return [found[name] for name in sorted(found)]


def default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "empty" if field.default_factory is not dataclasses.MISSING else "required"


def errors() -> str:
    """The error tree: what a program can catch, and what a shell sees."""
    from herd import errors as tree

    rows = ["| error | exit code | HTTP | when |", "|---|---|---|---|"]
    # What the module declares, not what inherits from it: which of those exist depends on what else has been imported.
    for kind in (value for value in vars(tree).values() if isinstance(value, type) and issubclass(value, tree.HerdError)):
        rows.append(f"| `{kind.__name__}` | {kind.exit_code} | {kind.http_status} | {cell(' '.join((kind.__doc__ or '').split()))} |")
    head = "Exit code 0 is success. An interrupted command ends with 130. Anything that is not one of these is a fault of ours."
    return "\n".join(["# Errors\n", head + "\n", *rows, ""])


def formats() -> str:
    """The table of number formats."""
    from herd.dtypes import ALL

    rows = ["| name | GGUF id | elements a block | bytes a block | bits a weight |", "|---|---|---|---|---|"]
    rows += [f"| `{d.name}` | {d.ggml_id} | {d.block} | {d.block_bytes} | {d.bits_per_weight:g} |" for d in ALL]
    head = "What the bytes of each format mean is defined in `src/herd/quant.py`, in numpy."
    return "\n".join(["# Number formats\n", head + "\n", *rows, ""])


def family() -> str:
    """Every release that the catalogue knows, by generation, with what of it is built from a description."""
    from herd.family.catalogue import Release, releases

    parts = [
        "# The family\n",
        "What `herd models` lists, from `src/herd/family/data/`. `herd show NAME` tells more, with the source of each figure and the "
        "published scores; `herd models --compare A B` sets releases side by side. Parameters are exact and equal the sum over the "
        "weights that the model's definition declares.\n",
    ]
    by_title: dict[str, list[Release]] = {}
    for release in releases().values():
        by_title.setdefault(release.title, []).append(release)
    for title, members in by_title.items():
        rows = ["| name | parameters | context | takes | released | licence | published as | hub |", "|---|---|---|---|---|---|---|---|"]
        rows += [family_row(release) for release in members]
        parts.append("\n".join([f"## {title}\n", *rows, ""]))
    unverified = [f"- `{release.name}`: {release.unverified}." for release in releases().values() if release.unverified]
    parts.append("\n".join(["## Built to a description\n", "See [what could not be verified](../unverified.md).\n", *unverified, ""]))
    return "\n".join(parts)


def family_row(release: Any) -> str:
    """One release as a row of its table."""
    count = "not published" if release.parameters is None else f"{release.parameters:,}"
    context = "" if release.context_length is None else f"{release.context_length:,}"
    layouts = ", ".join(release.layouts) if release.is_released else "not released"
    day = release.released if release.is_released else f"announced {release.released}"
    values = (
        f"`{release.name}`",
        count,
        context,
        ", ".join(release.inputs),
        day,
        release.licence,
        layouts,
        release.repository or "",
    )
    return f"| {' | '.join(cell(value) for value in values)} |"


def prose(thing: Any) -> str:
    """A docstring as a paragraph; one with columns keeps them."""
    text = inspect.getdoc(thing) or ""
    return f"```text\n{text}\n```" if "   " in text.replace("\n", "") else text


def cell(value: object) -> str:
    return str(value if not isinstance(value, type) else value.__name__).replace("|", "\\|")


def endpoints() -> str:
    """Every route of the server, and what becomes of each field of a body."""
    from herd.server.endpoints import endpoints_page
    from herd.server.surfaces import surfaces

    return endpoints_page(surfaces())


PAGES = {
    "commands.md": commands,
    "python.md": python,
    "settings.md": settings,
    "training.md": training,
    "endpoints.md": endpoints,
    "errors.md": errors,
    "formats.md": formats,
    "family.md": family,
}


def stale() -> dict[Path, str]:
    """Pages whose text differs from what the code says now, with that text."""
    current = {REFERENCE / name: NOTE + make() for name, make in PAGES.items()}
    return {path: text for path, text in current.items() if not path.is_file() or path.read_text(encoding="utf-8") != text}


def main() -> None:
    changed = stale()
    if sys.argv[1:] == ["--check"]:
        if changed:
            raise SystemExit(f"stale: {', '.join(path.name for path in changed)}; run scripts/docs")
        return
    for path, text in changed.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{path.name}")


if __name__ == "__main__":
    main()
