"""The command line. A command reads its parameters, calls one function and prints one line."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import __version__, cache_commands
from pipeline.options import Changes, Engine, ParamsFile, launch, load

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil monolingual teachers into one multi-branch multilingual text classifier, offline.\n\n"
    "`dvc repro` runs everything that is not up to date; each command runs one stage of it.",
)
teacher = typer.Typer(no_args_is_help=True, help="Stage one: teachers and their soft labels.")
student = typer.Typer(no_args_is_help=True, help="Stage two: the multilingual student.")
ablation = typer.Typer(
    no_args_is_help=True, help="Variants and settings of the student, with several seeds, compared."
)
app.add_typer(teacher, name="teacher")
app.add_typer(student, name="student")
app.add_typer(ablation, name="ablation")
app.add_typer(cache_commands.app, name="cache")


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


Language = Annotated[str, typer.Option(help="A supervised language, such as `de`.")]
Seed = Annotated[int, typer.Option(min=0, help="One of ablation.seeds.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from an interrupted run's checkpoint though code or libraries have changed."
    ),
]
Student = Annotated[
    Path | None, typer.Option("--model", metavar="FOLDER", help="A student in place of artifacts/student.")
]


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


@teacher.command(epilog="Example: `python -m pipeline teacher finetune --language de`")
def finetune(
    language: Language,
    resume: Resume = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Make a language's teacher, or pin the one that params.yaml names."""
    loaded = load(params, changes)
    teacher = loaded.teacher_of(language)
    launch(loaded)
    from stages.teacher.finetune import finetune as run

    typer.echo(run(loaded.task, teacher, loaded.teacher.finetune, language, resume=resume))


@teacher.command(epilog="Example: `python -m pipeline teacher label --language de`")
def label(
    language: Annotated[str, typer.Option(help="A supervised language, such as `de`, or `all` of them.")],
    jobs: Annotated[
        int, typer.Option(min=1, help="With `--language all`: so many languages at once, on this machine.")
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts, for a scheduler's job array."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the teacher: this process, or actors of a Ray cluster.")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(help="With `--engine ray`: the cluster; without it, Ray runs on this machine."),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="With `--engine ray`: teachers at once; else one for each GPU, or CPU."),
    ] = None,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Stage one: write a teacher's soft labels; only new examples go through the teacher."""
    loaded = load(params, changes)
    from pipeline import labelling

    options = labelling.Options(language, jobs, shard, engine, address, actors)
    if language == "all":
        labelling.label_all(loaded, options, ["--params", str(params), *(f"--set={c}" for c in changes)])
    else:
        typer.echo(labelling.label_one(loaded, options))


@student.command(epilog="Example: `python -m pipeline student pretrain`")
def pretrain(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Pin the multilingual model that the student starts from, or pre-train a small one."""
    loaded = load(params, changes)
    from stages.student.pretrain import pretrain as run

    typer.echo(run(loaded.task, loaded.student.pretrain))


@student.command(
    epilog="Example: `python -m pipeline student distill --set student.distill.variant=branches`"
)
def distill(
    resume: Resume = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Stage two: train the student from the teachers' soft labels."""
    loaded = load(params, changes)
    launch(loaded)
    from stages.student.distill import distill as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.student.distill, resume=resume).line())


@student.command(epilog="Example: `python -m pipeline student baseline`")
def baseline(
    resume: Resume = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Fine-tune the same model on the hard labels, to compare with."""
    loaded = load(params, changes)
    launch(loaded)
    from stages.student.baseline import baseline as run

    typer.echo(run(loaded.task, loaded.student.distill, resume=resume).line())


@student.command(epilog="Example: `python -m pipeline student evaluate`")
def evaluate(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Measure student and baseline on every language, branch by branch."""
    loaded = load(params, changes)
    from stages.student.evaluate import evaluate as run

    averages = run(loaded.task, loaded.student.distill, loaded.student.evaluate)["test"]
    shares = [f"{kind} {values['accuracy']:.1%}" for kind, values in averages.items()]
    typer.echo(f"student, test: {', '.join(shares)}")


@student.command(epilog="Example: `python -m pipeline student predict texts.csv --language-field language`")
def predict(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT", help="A .txt, .jsonl, .csv, .tsv or .parquet file; - or none: standard input."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A .jsonl or .parquet file, in place of JSONL on standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    language: Annotated[
        str | None, typer.Option(help="Of all examples; without a language, the mixture classifies.")
    ] = None,
    language_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column with each example's language.")
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A text column in place of task.text_fields; twice for pairs."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="plain (one text per line), jsonl, csv, tsv or parquet."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the new columns.")] = "",
    model: Student = None,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Classify texts or pairs: each example as it is, with label, probabilities and branch."""
    loaded = load(params, changes)
    from stages.artifacts import STUDENT
    from stages.streams import Input, Output
    from stages.student.predict import predict as run

    done = run(
        Input(source, format_, text_field or loaded.task.text_fields, language_field),
        Output(output, overwrite),
        loaded.student.distill,
        loaded.student.evaluate,
        model=model or STUDENT,
        language=language,
        prefix=prefix,
    )
    typer.echo(done.line(), err=output is None)


@student.command(epilog="Example: `python -m pipeline student export served --onnx`")
def export(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX, too: each language and the mixture.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is in the folder.")
    ] = False,
    model: Student = None,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Write a plain model per language, which anything can serve, and ONNX on request."""
    loaded = load(params, changes)
    from stages.artifacts import STUDENT
    from stages.student.export import export as run

    done = run(folder, loaded.student.distill, model=model or STUDENT, onnx=onnx, overwrite=overwrite)
    typer.echo(done.line())


@app.command(epilog="Example: `python -m pipeline report`")
def report(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Write what came of the run as a page that opens anywhere, and accuracies as a text table."""
    loaded = load(params, changes)
    from stages.report import report as run

    typer.echo(run(loaded.task, loaded.model_dump(exclude={"ablation", "cache", "launch"})))


@ablation.command("plan", epilog="Example: `python -m pipeline ablation plan`")
def plan_ablation(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Write down what each run depends on, so that a change runs no other again."""
    loaded = load(params, changes)
    from stages.ablation.plan import plan as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.student, loaded.ablation))


@ablation.command("pretrain", epilog="Example: `python -m pipeline ablation pretrain --seed 0`")
def pretrain_with_seed(
    seed: Seed,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Make the trunk that all runs of a seed start from."""
    loaded = load(params, changes)
    from stages.ablation.pretrain import pretrain as run

    typer.echo(run(loaded.task, loaded.student.pretrain, seed))


@ablation.command(epilog="Example: `python -m pipeline ablation train --run mblm --seed 0`")
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


@ablation.command(epilog="Example: `python -m pipeline ablation compare`")
def compare(
    sweep: Annotated[
        bool, typer.Option("--sweep", help="The runs of `ablation.sweep`, on validation data.")
    ] = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Write accuracies over seeds, and how sure their differences are, as a table and as JSON."""
    loaded = load(params, changes)
    from stages.ablation.compare import compare as run

    typer.echo(" ".join(map(str, run(loaded.task, loaded.ablation, sweep=sweep))))
