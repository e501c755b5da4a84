"""The commands ``teacher …``: stage one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import Changes, Engine, ParamsFile, Resume, launch, load

if TYPE_CHECKING:
    from pipeline.params import PipelineParams
    from stages.teacher.params import OneTeacher, TeacherParams

app = typer.Typer(no_args_is_help=True, help="Stage one: teachers and their soft labels.")

Language = Annotated[str, typer.Option(help="A supervised language, such as `de`.")]
AcceptChange = Annotated[
    bool,
    typer.Option(
        "--accept-change", help="Go on though an endpoint's server has changed, or answers otherwise."
    ),
]


@app.command(epilog="Example: `python -m pipeline teacher finetune --language de`")
def finetune(
    language: Language,
    resume: Resume = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Make a language's teacher, or pin the one that params.yaml names."""
    loaded = load(params, changes)
    teacher = _with_whole_ids(loaded.teacher_of(language), loaded)
    launch(loaded)
    from stages.teacher.finetune import finetune as run

    typer.echo(run(loaded.task, teacher, loaded.teacher.finetune, language, resume=resume))


@app.command(epilog="Example: `python -m pipeline teacher label --language de`")
def label(
    language: Annotated[str, typer.Option(help="A supervised language, such as `de`, or `all` of them.")],
    jobs: Annotated[
        int, typer.Option(min=1, help="With `--language all`: so many languages at once, on this machine.")
    ] = 1,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts, for a scheduler's job array."),
    ] = None,
    shard: Annotated[str | None, typer.Option(hidden=True, help="The name of --part in 0.1.")] = None,
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
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only a first try: ask an endpoint about so many texts, and estimate what all take."
        ),
    ] = None,
    accept_change: AcceptChange = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Stage one: write a teacher's soft labels; only new examples go through the teacher."""
    loaded = load(params, changes)
    from pipeline import label_jobs

    if shard is not None:
        typer.echo("warning: --shard is called --part now; the old name goes with the next release", err=True)
    part = shard if part is None else part
    options = label_jobs.Options(language, jobs, part, engine, address, actors, limit, accept_change)
    if language == "all":
        label_jobs.label_all(loaded, options, ["--params", str(params), *(f"--set={c}" for c in changes)])
    else:
        typer.echo(label_jobs.label_one(loaded, options))


@app.command(epilog="Example: `python -m pipeline teacher silver`")
def silver(
    accept_change: AcceptChange = False,
    params: ParamsFile = Path("params.yaml"),
    changes: Changes = [],  # noqa: B006
) -> None:
    """Label texts of zero-shot languages that have a teacher: a finished student, or soft labels."""
    loaded = load(params, changes)
    from stages.data.silver import silver_languages

    languages = silver_languages(loaded.task, loaded.teachers)
    teachers = {language: _with_whole_ids(loaded.teachers[language], loaded) for language in languages}
    from cache import store_root
    from stages.teacher.silver import silver as run

    root = store_root(loaded.cache.root)
    for line in run(loaded.task, teachers, loaded.teacher.label, root, accept_change=accept_change):
        typer.echo(line)


def _with_whole_ids(teacher: "TeacherParams", loaded: "PipelineParams") -> "TeacherParams":
    """Find out which producers of the store are meant today by names and beginnings of ids."""
    from cache import store_root
    from cache.names import find_producer

    root = store_root(loaded.cache.root)

    def found(one: "OneTeacher") -> dict[str, str]:
        return {"producer": find_producer(root, one.producer)} if one.producer is not None else {}

    more = [one.model_copy(update=found(one)) for one in teacher.more]
    return teacher.model_copy(update={**found(teacher), "more": more})
