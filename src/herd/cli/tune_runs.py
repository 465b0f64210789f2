"""`herd tune list` and `herd tune show`: which runs there are, how they stand, and their curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option

if TYPE_CHECKING:
    from herd.training.running.overview import Overview


@click.command(
    "list",
    cls=Examples,
    examples="""
    herd tune list              the runs in runs/
    herd tune list elsewhere    those in another folder
    """,
)
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@offline_option
def list_runs(folder: Path, as_json: bool) -> None:
    """Show which runs there are and how they stand; the one last worked on comes last."""
    from herd.cli.output import print_json, print_table
    from herd.training.running.overview import overviews

    found = overviews(folder)
    if as_json:
        print_json({"runs": [_as_json(run) for run in found]})
    elif found:
        print_table(["run", "recipe", "state", "step", "loss", "held out"], [_row(run) for run in found])
    else:
        click.echo(f"There are no runs in {folder}.")


@click.command(
    "show",
    cls=Examples,
    examples="""
    herd tune show runs/faq                     how it stands, and its loss
    herd tune show runs/faq --figure gradient   another curve; can be repeated
    herd tune show runs/faq --svg               draw all curves into runs/faq/curves.svg
    """,
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--figure", "figures", multiple=True, metavar="NAME", help="Which curves; all for every one.  [default: loss]")
@click.option("--svg", is_flag=True, help="Draw all curves into curves.svg of the run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with every logged value of the figures.")
@offline_option
def show_run(run: Path, figures: tuple[str, ...], svg: bool, as_json: bool) -> None:
    """Show how a run stands and what its curves look like."""
    from herd.cli.output import print_json
    from herd.training.running.curves import in_dots, panels, series_of, write_svg
    from herd.training.running.overview import overview

    found = overview(run)
    chosen = _chosen(panels(series_of(run)), figures)
    if as_json:
        curves = {name: {"steps": steps, "held_out": held_out} for name, steps, held_out in chosen}
        print_json(_as_json(found) | {"curves": curves})
        return
    for line in _told(found):
        click.echo(line)
    for name, steps, held_out in chosen:
        click.echo(f"\n{in_dots(name, steps, held_out, width=_width())}")
    if svg:
        click.echo(f"\nwrote {write_svg(run)}")


def _chosen(found: list[Any], figures: tuple[str, ...]) -> list[Any]:
    """The panels that were asked for. `UsageError` for one that there is not."""
    from herd.errors import UsageError, did_you_mean

    known = [name for name, _, _ in found]
    if "all" in figures:
        return found
    for name in figures:
        if name not in known:
            raise UsageError(f"The run has no figure {name!r:.60}: {', '.join(known)}{did_you_mean(name, known)}")
    wanted = figures or ("loss",)
    return [panel for panel in found if panel[0] in wanted]


def _told(run: Overview) -> list[str]:
    """What is known of a run, in lines."""
    recipe = f" ({run.recipe})" if run.recipe else ""
    lines = [f"{run.folder}{recipe}: {run.state.value}, {_step(run)}"]
    if run.why:
        lines.append(f"  {run.why}")
    lines += [f"  {name} {value:.6g}" for name, value in run.figures.items()]
    if run.checkpoints:
        lines.append(f"  checkpoints at step {', '.join(map(str, run.checkpoints))}")
    if run.state.can_resume:
        lines.append("  The command that began it, with --resume, goes on.")
    lines += [f"  herd chat {run.folder} talks to what it has learned." for _ in run.result[:1]]
    return lines


def _step(run: Overview) -> str:
    return f"step {run.step} of {run.steps}" if run.steps else f"step {run.step}"


def _row(run: Overview) -> list[str]:
    figures = (run.figures.get("loss"), run.figures.get("held_out.loss"))
    shown = ["" if value is None else f"{value:.4f}" for value in figures]
    return [run.folder.name, run.recipe, run.state.value, f"{run.step}/{run.steps}" if run.steps else str(run.step), *shown]


def _as_json(run: Overview) -> dict[str, Any]:
    return {
        "folder": str(run.folder), "recipe": run.recipe, "state": run.state.value, "step": run.step, "steps": run.steps,
        "figures": dict(run.figures), "checkpoints": list(run.checkpoints), "why": run.why, "result": list(run.result),
    }  # fmt: skip


def _width() -> int:
    import shutil

    return max(40, min(100, shutil.get_terminal_size().columns - 14))
