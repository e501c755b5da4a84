"""The commands ``student …``: stage two, and what users do with the student."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import Changes, ParamsFile, Resume, launch, load
from pipeline.params import PipelineParams

app = typer.Typer(no_args_is_help=True, help="Stage two: the multilingual student.")

Student = Annotated[
    Path | None, typer.Option("--model", metavar="FOLDER", help="A student in place of artifacts/student.")
]


class Quantization(StrEnum):
    """What ONNX weights may be quantised to."""

    INT8 = "int8"


@app.command(epilog="Example: `python -m pipeline student pretrain`")
def pretrain(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Pin the multilingual model that the student starts from, or pre-train a small one."""
    loaded = load(params, changes)
    from stages.student.pretrain import pretrain as run

    typer.echo(run(loaded.task, loaded.student.pretrain))


@app.command(epilog="Example: `python -m pipeline student distill --set student.distill.variant=branches`")
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


@app.command(epilog="Example: `python -m pipeline student baseline`")
def baseline(
    resume: Resume = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Fine-tune the same model on the hard labels, to compare with."""
    loaded = load(params, changes)
    launch(loaded)
    from stages.student.baseline import baseline as run

    typer.echo(run(loaded.task, loaded.teachers, loaded.student.distill, resume=resume).line())


@app.command(epilog="Example: `python -m pipeline student evaluate`")
def evaluate(params: ParamsFile = Path("params.yaml"), changes: Changes = []) -> None:  # noqa: B006
    """Measure student and baseline on every language, branch by branch."""
    loaded = load(params, changes)
    from stages.student.evaluate import evaluate as run

    averages = run(loaded.task, loaded.student.distill, loaded.student.evaluate)["test"]
    shares = [f"{kind} {values['accuracy']:.1%}" for kind, values in averages.items()]
    typer.echo(f"student, test: {', '.join(shares)}")
    typer.echo(_by_verdict(loaded))
    for guess in _guesses():
        typer.echo(guess)
    typer.echo(f"teachers over finetune, validation: {_premise(loaded)}")


def _by_verdict(loaded: PipelineParams) -> str:
    """Say in which languages to use the student, and what speaks against it in others."""
    from cache import CacheError
    from stages.errors import StageError
    from stages.results.predictions import read_predictions
    from stages.results.standing import standings

    said = [read_predictions(loaded.task, model) for model in ("student", "baseline")]
    try:
        found = standings(loaded.task, loaded.teachers, *said)
    except (CacheError, StageError):  # there are no soft labels
        found = standings(loaded.task, {}, *said)
    by_verdict: dict[str, list[str]] = {}
    for language, one in found.items():
        by_verdict.setdefault(one.verdict(), []).append(language)
    return "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in sorted(by_verdict.items()))


def _guesses() -> list[str]:
    """Say how good the student may be in languages without labels; of none, nothing."""
    from stages.results.predictions import read_estimates

    guessed = [
        f"{row['language']} {100 * row['confidence']:.0f} %"
        for row in read_estimates()
        if row["accuracy"] is None
    ]
    return [f"guessed without labels: {', '.join(guessed)}"] if guessed else []


def _premise(loaded: PipelineParams) -> str:
    """Say whether the teachers know more than the baseline has learned, where there are soft labels."""
    from cache import CacheError
    from stages.errors import StageError
    from stages.results.predictions import read_predictions
    from stages.results.premise import premise

    keep_best = loaded.teacher.finetune.keep == "best" and loaded.teacher.finetune.epochs > 1
    try:
        baseline = read_predictions(loaded.task, "baseline")
        gain = premise(loaded.task, loaded.teachers, baseline, keep_best=keep_best).average
    except (CacheError, StageError) as error:
        return f"not known: {error}"
    return f"{gain.points()}; {gain.reading()}"


@app.command(epilog="Example: `python -m pipeline student predict texts.csv --language-field language`")
def predict(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="A .txt, .jsonl, .json, .csv or .tsv file, also as .gz or .zst, or .parquet; "
            "- or none: standard input.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, in place of standard output."),
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
    quoting: Annotated[
        str | None,
        typer.Option(help="csv: fields of CSV and TSV may be in double quotes; none: quotes are text."),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Separates the fields of CSV, in place of a comma.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A column of CSV or TSV without a header line; once for each."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the new columns.")] = "",
    abstain_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="No label where no class has this probability; 0.7, for example."),
    ] = None,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Probabilities of the raw logits.")
    ] = False,
    model: Student = None,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Classify texts or pairs: each example as it is, with label, probabilities and branch."""
    loaded = load(params, changes)
    from stages.artifacts import STUDENT
    from stages.data.files import Input
    from stages.data.output import Output
    from stages.student.predict import predict as run

    done = run(
        Input(
            source, format_, text_field or loaded.task.text_fields, language_field, quoting, delimiter, column
        ),
        Output(output, overwrite),
        loaded.student.distill,
        loaded.student.evaluate,
        model=model or STUDENT,
        language=language,
        prefix=prefix,
        calibrated=not uncalibrated,
        abstain_below=abstain_below,
    )
    typer.echo(done.line(), err=output is None)


@app.command(epilog="Example: `python -m pipeline student export artifacts/export --onnx`")
def export(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX, too: one graph of all branches.")] = False,
    quantize: Annotated[
        Quantization | None, typer.Option(help="ONNX in int8, too, and what that changes; needs --onnx.")
    ] = None,
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

    done = run(
        folder,
        loaded.student.distill,
        loaded.student.evaluate,
        loaded.task,
        model=model or STUDENT,
        onnx=onnx,
        int8=quantize is not None,
        overwrite=overwrite,
    )
    typer.echo(done.line())


@app.command(epilog="Example: `python -m pipeline student serve --model artifacts/export/onnx --port 8000`")
def serve(
    model: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder onnx/ of an export; int8 where it has that.")
    ] = Path("artifacts/export/onnx"),
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    threads: Annotated[int, typer.Option(min=0, help="Threads that compute; 0: one for each core.")] = 0,
) -> None:
    """Serve an exported student over HTTP, with a page to try it on."""
    from stages.student.serve import serve as run

    run(model, host=host, port=port, threads=threads, say=typer.echo)


@app.command(epilog="Example: `python -m pipeline student average students/0 students/1 --output student`")
def average(
    students: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Students, two or more.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Make one student of several that began alike: the mean of their weights."""
    from stages.student.average import average as run

    typer.echo(run(students, output=output, overwrite=overwrite))
