"""The command line, put together. A command reads its parameters, calls one function, prints one line."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.commands import ablation, cache, student, teacher
from pipeline.options import Changes, ParamsFile, load

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil monolingual teachers into one multi-branch multilingual text classifier, offline.\n\n"
    "`dvc repro` runs everything that is not up to date; each command runs one stage of it.",
)
for group in (teacher, student, ablation, cache):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mblm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(epilog="Example: `python -m pipeline plan`")
def plan(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Write down which parameters each stage depends on, so that a change runs no other again."""
    loaded = load(params, changes)
    from stages.plan import plan as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.teacher, loaded.student))


@app.command(epilog="Example: `python -m pipeline prepare`")
def prepare(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Read the task's data, check it and write it to artifacts/data."""
    loaded = load(params, changes)
    from stages.prepare import prepare as run

    typer.echo(run(loaded.task).table())


@app.command(epilog="Example: `python -m pipeline report`")
def report(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Write what came of the run as a page that opens anywhere, and accuracies as a text table."""
    loaded = load(params, changes)
    from stages.report import report as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.model_dump(exclude={"ablation", "cache", "launch"})))
