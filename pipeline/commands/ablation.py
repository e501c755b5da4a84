"""The commands ``ablation …``: variants and settings of the student, compared."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import Changes, ParamsFile, load

app = typer.Typer(
    no_args_is_help=True, help="Variants and settings of the student, with several seeds, compared."
)

Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="One of ablation.seeds.")]


@app.command(epilog="Example: `python -m pipeline ablation plan`")
def plan(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Write down what each run depends on, so that a change runs no other again."""
    loaded = load(params, changes)
    from stages.ablation.plan import plan as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.student, loaded.ablation))


@app.command(epilog="Example: `python -m pipeline ablation pretrain --seed 0`")
def pretrain(
    seed: Seed,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Make the encoder that all runs of a seed start from."""
    loaded = load(params, changes)
    from stages.ablation.pretrain import pretrain as run

    typer.echo(run(loaded.task, loaded.student.pretrain, seed, seeds=loaded.ablation.seeds))


@app.command(epilog="Example: `python -m pipeline ablation train --run mblm --seed 0`")
def train(
    run: Annotated[str, typer.Option(help="A variant, or the name of a run of `ablation.sweep`.")],
    seed: Seed,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Train a student and keep its predictions: of a variant on test data too, of a sweep's run never."""
    loaded = load(params, changes)
    from stages.ablation.train import train as train_run

    sections = loaded.task, loaded.teachers, loaded.student, loaded.ablation
    typer.echo(train_run(*sections, run=run, seed=seed))


@app.command(epilog="Example: `python -m pipeline ablation compare`")
def compare(
    sweep: Annotated[
        bool, typer.Option("--sweep", help="The runs of `ablation.sweep`, on validation data.")
    ] = False,
    kept: Annotated[
        bool, typer.Option("--kept", help="Of the runs in `ablation.kept`, which need no data; only shown.")
    ] = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Write accuracies over seeds, and how sure their differences are, as a table and as JSON."""
    loaded = load(params, changes)
    from stages.ablation.compare import compare as run
    from stages.ablation.compare import compare_kept

    sections = loaded.task, loaded.teachers, loaded.student, loaded.ablation
    if kept:
        typer.echo(compare_kept(*sections, sweep=sweep), nl=False)
    else:
        typer.echo(" ".join(map(str, run(*sections, sweep=sweep))))


@app.command(epilog="Example: `python -m pipeline ablation keep --set ablation.kept=recipes/mine`")
def keep(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Keep where finished runs were right, small enough for a repository, in the folder `ablation.kept`."""
    loaded = load(params, changes)
    from stages.ablation.keep import keep as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.student, loaded.ablation))
