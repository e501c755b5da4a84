"""The commands ``cache …``: look at the store of soft labels, check it, mend it, clean it, share it."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pipeline.options import Changes, ParamsFile, load
from pipeline.terminal import bytes_bar, counted, in_bytes, print_json, print_line, print_table

if TYPE_CHECKING:
    from cache import CacheError, Producer
    from cache.commands.ls import Listed
    from cache.commands.repair import Repaired
    from cache.commands.show import Shown
    from cache.commands.verify import Verified
    from pipeline.params import PipelineParams
    from stages.teacher.labelling.audit import Rechecked

app = typer.Typer(no_args_is_help=True, help="The store of soft labels, shared by all experiments.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Elsewhere = Annotated[
    str | None,
    typer.Option("--store", help="A folder or URL, in place of the store that is in use."),
]
Producers = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...", help="Producers, by name or the beginning of their id; all, if none is named."
    ),
]
OneProducer = Annotated[
    str, typer.Argument(metavar="ID", help="A producer, by name or the beginning of its id.")
]
_DEFAULT = Path("params.yaml")
_Done = TypeVar("_Done")


@app.command(epilog="Example: `python -m pipeline cache ls`")
def ls(
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """List the producers: whose soft labels, how many, how large, when used last."""
    from cache.commands.ls import ls as run

    root = _root(store, params, changes)
    unreadable: list[CacheError] = []
    found = run(root, on_unreadable=unreadable.append)
    if as_json:
        print_json(found)
    else:
        print_table(_LISTED, [_describe(one) for one in found])
        typer.echo(f"{counted(len(found), 'producer')}, {in_bytes(sum(one.size for one in found))} in {root}")
    _require_none(unreadable)


@app.command(epilog="Example: `python -m pipeline cache show 3f2a`")
def show(
    producer: OneProducer,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Show a producer: its facts, classes and shards, and how much of the current data it has labelled."""
    from cache.commands.show import show as run
    from cache.names import find_producer, name_of
    from cache.store import Store
    from stages.teacher.labelling.audit import coverage

    loaded = _loaded(store, params, changes)
    root = _root(store, params, changes)
    found = run(root, find_producer(root, producer))
    name = name_of(root, found.producer)
    opened = Store.open(root, found.producer)
    covered = coverage(loaded.task, opened) if loaded else []
    damaged = {name: error.reason for name, error in opened.damaged.items()}
    unreadable = {name: error.reason for name, error in opened.unreadable.items()}
    if as_json:
        told = {"name": name, "coverage": covered, "damaged": damaged, "unreadable": unreadable}
        print_json({**dataclasses.asdict(found), **told})
        return
    print_line(f"producer {found.producer}{f', {name}' if name else ''}")
    _print_facts(found, opened.producer)
    shards = [
        [name, str(rows), format_, in_bytes(size)] for name, (rows, format_, size) in found.shards.items()
    ]
    print_table(["shard", "examples>", "format", "size>"], shards)
    if found.foreign:
        print_line(f"foreign files, which are never read: {', '.join(found.foreign)}")
    for name, reason in damaged.items():
        print_line(f"damaged: {name}: {reason}; mend with: python -m pipeline cache repair --store {root}")
    for name, reason in unreadable.items():
        print_line(f"unreadable: {name}: {reason}")
    rows = [
        [row["language"], row["split"], f"{row['labelled']:,}", f"{row['examples']:,}"] for row in covered
    ]
    if rows:
        print_table(["language", "split", "labelled>", "examples>"], rows)
    elif loaded:
        typer.echo("it has labelled none of the current data")


@app.command(epilog="Example: `python -m pipeline cache verify --sample 100`")
def verify(
    producers: Producers = None,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Also run so many random examples of each language through its teacher."),
    ] = 0,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Check digests, columns, NaN and repeated examples; with --sample, ask the teachers again.

    Ends with exit code 1 where anything is wrong.
    """
    from cache.commands.verify import verify as run

    loaded = load(params, changes) if sample else None
    root = _root(store, params, changes)
    ids = _chosen(root, producers)
    with bytes_bar("verify", _total_size(root, ids)) as on_bytes:
        found = [run(root, one, on_bytes=on_bytes) for one in ids]
    again = []
    if loaded is not None:
        from stages.teacher.labelling.audit import current_teachers, recheck

        task, label = loaded.task, loaded.teacher.label
        for current in current_teachers(task, loaded.teachers, label, ids):
            again.append(recheck(task, label, root, current, sample))
    if as_json:
        print_json({"producers": found, "asked_again": again})
    else:
        _print_verified(root, found, again, sample=sample)
    _require_good(root, found, again)


@app.command(epilog="Example: `python -m pipeline cache repair`")
def repair(
    producers: Producers = None,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Set damaged files aside, then label what the store lacks of the current data.

    A producer with files that cannot be read or moved is left as it is, and the exit code is 1.
    """
    from cache.commands.repair import repair as run

    loaded = _loaded(store, params, changes)
    root = _root(store, params, changes)
    repaired, unreadable = _each(_chosen(root, producers), partial(run, root))
    found = [done for done in repaired if done.damaged or done.lacks_facts]
    if not as_json:
        for done in found:
            for name, reason in done.damaged.items():
                print_line(f"set aside: {root}/{done.producer}/damaged/{name} ({reason})")
        print_line(f"{counted(sum(len(done.damaged) for done in found), 'file')} set aside")
    labelled: dict[str, int] = {}
    try:
        if found and loaded:
            from stages.teacher.labelling.audit import relabel

            sections = (loaded.task, loaded.teachers, loaded.teacher.label)
            labelled = relabel(*sections, root, [done.producer for done in found])
    finally:  # what was set aside is told, whatever becomes of the labelling
        if as_json:
            print_json({"set_aside": found, "labelled": labelled})
    if not as_json:
        _print_labelled(root, found, labelled)
    _require_none(unreadable, "; nothing of its producer was set aside")


@app.command(epilog="Example: `python -m pipeline cache gc --unused-for 90d --clone . --dry-run`")
def gc(
    unused_for: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what nobody used for so long, such as 90d or 12h.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Then the longest unused, until the store is this small: 20GB."),
    ] = None,
    clone: Annotated[
        list[Path] | None,
        typer.Option(help="Keep what any experiment of this clone refers to; may be repeated."),
    ] = None,
    imported: Annotated[
        bool,
        typer.Option(
            "--imported",
            help="Also what nobody here can compute again: what was imported or asked over HTTP.",
        ),
    ] = False,
    ignore_missing: Annotated[
        bool,
        typer.Option(
            "--ignore-missing", help="Let go of experiments whose soft labels are in no DVC cache of theirs."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and keep it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Delete producers that nobody needs. It says which, and asks first.

    With --clone alone, all go that no experiment of the clones refers to and nobody used for a day.
    """
    from cache.commands.gc import delete, plan, referenced_by

    root = _root(store, params, changes)
    if unused_for is None and max_size is None and not clone:
        raise typer.BadParameter("say what may go: --unused-for, --max-size or --clone")
    victims = plan(
        root,
        unused_for=_parse_age(unused_for) if unused_for is not None else None,
        max_size=_parse_size(max_size) if max_size is not None else None,
        referenced=(
            {one for path in clone for one in referenced_by(path, ignore_missing=ignore_missing)}
            if clone
            else None
        ),
        imported=imported,
    )
    if as_json and not (dry_run or yes):
        raise typer.BadParameter("--json asks no question: add --dry-run or --yes")
    if as_json:
        print_json(victims)
    elif victims:
        rows = [[*_describe(victim.listed), victim.reason] for victim in victims]
        print_table([*_LISTED, "why"], rows)
    total = f"{counted(len(victims), 'producer')}, {in_bytes(sum(v.listed.size for v in victims))}"
    if not victims or dry_run:
        typer.echo(
            f"nothing is deleted; it would be {total}" if victims else "nothing to delete", err=as_json
        )
        return
    if not yes:
        typer.confirm(f"Delete {total} in {root}?", abort=True)
    n_deleted = sum(delete(root, victim) for victim in victims)
    typer.echo(f"deleted {counted(n_deleted, 'producer')}", err=as_json)
    if n_deleted < len(victims):
        typer.echo(f"{len(victims) - n_deleted} were used meanwhile and are kept", err=as_json)


@app.command(epilog="Example: `python -m pipeline cache push s3://bucket/soft`")
def push(
    url: Annotated[str, typer.Argument(help="A folder or URL.")],
    producers: Producers = None,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Copy to another store what it lacks. What was stopped goes on when the command runs again."""
    root = _root(store, params, changes)
    _transfer(root, url, _chosen(root, producers), as_json=as_json, title="push")


@app.command(epilog="Example: `python -m pipeline cache pull s3://bucket/soft`")
def pull(
    url: Annotated[str, typer.Argument(help="A folder or URL.")],
    producers: Producers = None,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Copy from another store what this one lacks. What was stopped goes on when the command runs again."""
    root = _root(store, params, changes)
    _transfer(url, root, _chosen(url, producers), as_json=as_json, title="pull")


@app.command(epilog="Example: `python -m pipeline cache export 3f2a de.parquet`")
def export(
    producer: OneProducer,
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Write a producer's soft labels to a Parquet file, with the texts that the current data has."""
    from cache.commands.export import export as run
    from cache.commands.ls import describe
    from cache.names import find_producer
    from stages.data.examples import all_examples

    loaded = _loaded(store, params, changes)
    root = _root(store, params, changes)
    found = find_producer(root, producer)
    language = describe(root, found).language  # whose rows count where languages have a text in common
    with bytes_bar("export", 2 * _total_size(root, [found])) as on_bytes:
        examples = all_examples(loaded.task, first=language) if loaded else None
        count = run(root, found, file, examples=examples, overwrite=overwrite, on_bytes=on_bytes)
    if as_json:
        print_json({"producer": found, "file": str(file), "examples": count})
    else:
        typer.echo(f"{count:,} soft labels in {file}")


_IMPORT = "cache import soft.parquet --language de --values probabilities --fact name=gpt --fact version=2"


@app.command(epilog="Example: `python -m pipeline cache name 3f2a de@2026.11-large`")
def name(
    producer: OneProducer,
    new: Annotated[str, typer.Argument(metavar="NAME", help="What this store is to call it.")],
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Give a producer a name, for people; it decides nothing, and no two of a store have the same."""
    from cache.commands.name import give_name
    from cache.names import find_producer

    root = _root(store, params, changes)
    found = find_producer(root, producer)
    give_name(root, found, new)
    if as_json:
        print_json({"producer": found, "name": new})
    else:
        print_line(f"{found[:12]} is {new}")


@app.command("import", epilog=f"Example: `python -m pipeline {_IMPORT}`")
def import_(
    file: Annotated[Path, typer.Argument(help="Parquet, JSON, CSV or TSV, with the task's text fields.")],
    language: Annotated[str, typer.Option(help="Of the texts.")],
    fact: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Who made them: name, version, licence …; may be repeated."),
    ] = None,
    facts: Annotated[Path | None, typer.Option(help="A YAML file of such facts.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call them in this store; name@version, if not given.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="logits, log_probabilities, probabilities or votes: of each class.")
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(help="The column with them, a list or a mapping; or p_{class}: a column per class."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="The file's names of the classes, in its order.")
    ] = None,
    text_field: Annotated[
        list[str] | None, typer.Option(help="What the file calls a text field; repeated for a second one.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="What separates the fields of CSV.")] = None,
    quoting: Annotated[str | None, typer.Option(help="Of CSV and TSV: csv or none.")] = None,
    floor: Annotated[float, typer.Option(help="The least probability; zero counts as this.")] = 1e-7,
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="Import even if most texts are not in the data.")
    ] = False,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Take soft labels that somebody else made into the store: of an ensemble, of annotators, of an LLM.

    What `cache export` wrote needs no facts and no options.
    """
    from stages.teacher.labelling.imports import ImportOptions, import_file

    loaded = load(params, changes)
    options = ImportOptions(
        {
            "values": values,
            "field": field,
            "classes": classes.split(",") if classes else None,
            "text_fields": text_field,
            "delimiter": delimiter,
            "quoting": quoting,
            "floor": floor,
        },
        fact or [],
        facts,
        name,
        keep_unknown,
    )
    done = import_file(
        loaded.task,
        loaded.teachers.get(language),
        loaded.teacher.label,
        _root(store, params, changes),
        language,
        file,
        options,
    )
    if as_json:
        print_json(done)
    else:
        print_line(done.line())


@app.command(epilog="Example: `python -m pipeline cache compact`")
def compact(
    producers: Producers = None,
    as_json: AsJson = False,
    store: Elsewhere = None,
    params: ParamsFile = _DEFAULT,
    changes: Changes = [],  # noqa: B006
) -> None:
    """Merge small shards into large ones, while others use the store."""
    from cache.commands.compact import compact as run
    from stages.teacher.params import LabelParams

    loaded = _loaded(store, params, changes)
    format_ = loaded.teacher.label.format if loaded else LabelParams().format
    root = _root(store, params, changes)
    ids = _chosen(root, producers)
    with bytes_bar("compact", _total_size(root, ids)) as on_bytes:
        found, failed = _each(ids, partial(run, root, format_=format_, on_bytes=on_bytes))
    if as_json:
        print_json(found)
    else:
        rows = [
            [done.producer[:12], str(done.before), str(done.after), f"{done.repeated:,}"] for done in found
        ]
        print_table(["producer", "shards before>", "after>", "repeated, left out>"], rows)
    _require_none(failed)


def _each(ids: Sequence[str], do: Callable[[str], _Done]) -> "tuple[list[_Done], list[CacheError]]":
    """Do something with each producer; gives what was done, and why others were left as they are."""
    from cache import ProducerError, UnreadableError, UnwritableError

    found: list[_Done] = []
    failed: list[CacheError] = []
    for one in ids:
        try:
            found.append(do(one))
        except (ProducerError, UnreadableError, UnwritableError) as error:
            failed.append(error)
    return found, failed


def _is_imported(root: str, producer_id: str) -> bool:
    """Tell whether nobody here can label again what a producer said, as far as its facts are there."""
    from cache import CacheError, Store

    with suppress(CacheError):
        return Store.open(root, producer_id).producer.imported is not None
    return False


def _print_labelled(root: str, found: "list[Repaired]", labelled: dict[str, int]) -> None:
    """Say what was labelled again of producers that were mended, and what becomes of the others."""
    for producer, count in labelled.items():
        print_line(f"{producer[:12]}: {count:,} examples of the current data labelled")
    imported = [done.producer for done in found if _is_imported(root, done.producer)]
    for producer in imported:
        print_line(f"{producer[:12]}: it was imported, so import its file again")
    unknown = [one.producer for one in found if one.lacks_facts and one.producer not in labelled]
    for producer in unknown:
        print_line(
            f"{producer[:12]}: it has no producer.json; run stage one with its teacher, which writes it "
            f"again, or import its file again; if nobody knows its teacher, delete {root}/{producer}"
        )
    if len(found) > len(labelled) + len(imported) + len(unknown):
        print_line("other experiments, and teacher silver, label again what they miss when they run next")


_LISTED = ("producer", "name", "teacher", "language", "examples>", "shards>", "size>", "last use (UTC)")


def _describe(one: "Listed") -> list[str]:
    counts = [f"{one.examples:,}", f"{one.shards:,}", in_bytes(one.size)]
    names = [one.producer[:12], one.name or "–", one.teacher or "?", one.language or "?"]
    return [*names, *counts, f"{one.last_use:%Y-%m-%d %H:%M}"]


def _print_facts(found: "Shown", producer: "Producer") -> None:
    hidden = ("config", "tokenizer", "imported")
    facts = {key: value for key, value in found.facts.items() if key not in hidden}
    print_line(f"classes  {', '.join(found.classes[:20])}{' …' if len(found.classes) > 20 else ''}")
    for key, value in sorted(facts.items()):
        print_line(f"{key:<12} {json.dumps(value)}")
    if producer.imported is not None:
        made = found.facts["imported"]
        print_line(f"{'imported':<12} {json.dumps({key: made[key] for key in made if key != 'facts'})}")
        for key, value in producer.imported.items():
            print_line(f"  {key:<10} {value}")
    elif producer.endpoint is None:
        kind = found.facts["config"].get("model_type")
        print_line(f"{'model':<12} {kind}; all of its configuration: --json")


def _print_verified(root: str, found: "list[Verified]", again: "list[Rechecked]", *, sample: int) -> None:
    heads = ["shards>", "examples>", "repeated>", "contradicting>", "damaged>", "unreadable>", "foreign>"]
    rows = []
    for one in found:
        counts = (
            one.shards,
            one.examples,
            one.repeated,
            one.contradicting,
            len(one.damaged),
            len(one.unreadable),
            len(one.foreign),
        )
        rows.append([one.producer[:12], *(f"{count:,}" for count in counts)])
    print_table(["producer", *heads], rows)
    for one in found:
        for name, reason in one.damaged.items():
            print_line(f"damaged: {root}/{one.producer}/{name}: {reason}")
        for name, reason in one.unreadable.items():
            print_line(f"unreadable: {root}/{one.producer}/{name}: {reason}")
        for name in one.foreign:
            print_line(f"foreign, never read: {root}/{one.producer}/{name}")
    for asked in again:
        typer.echo(
            f"{asked.language}: {asked.examples} examples asked again, {asked.differing} differ; "
            f"largest difference of a logit {asked.largest:.1e}"
        )
        if asked.drift():
            print_line(f"{asked.language}: {asked.drift()}")
    if sample and not again:
        typer.echo(
            "none of these producers is a teacher of a supervised language of the current params.yaml that "
            "runs here: nothing to ask again"
        )


def _require_good(root: str, found: "list[Verified]", again: "list[Rechecked]") -> None:
    from cache import CacheError

    if not found:
        raise CacheError(f"there are no producers in {root}")
    unreadable = [(f"{one.producer}/{name}", why) for one in found for name, why in one.unreadable.items()]
    if unreadable:
        first, why = unreadable[0]
        raise CacheError(f"{counted(len(unreadable), 'file')} cannot be read, first {root}/{first}: {why}")
    n_damaged = sum(len(one.damaged) for one in found)
    if n_damaged:
        raise CacheError(
            f"{counted(n_damaged, 'damaged file')}; mend with: python -m pipeline cache repair --store {root}"
        )
    contradicting = [one.producer[:12] for one in found if one.contradicting]
    if contradicting:
        raise CacheError(
            f"producer {contradicting[0]} has soft labels of one example that contradict each other; "
            "delete its folder and label again"
        )
    languages = [asked.language for asked in again if asked.differing]
    if languages:
        raise CacheError(
            f"the teacher of {', '.join(languages)} no longer gives the logits in the store, beyond the "
            "tolerance; another version of a library, or another device?"
        )


def _transfer(source: str, target: str, ids: list[str], *, as_json: bool, title: str) -> None:
    from cache import CacheError, UnreadableError
    from cache.commands.transfer import compare, copy
    from cache.names import name_of

    if not ids:
        raise CacheError(f"there are no producers in {source}")
    plan = compare(source, target, ids)
    with bytes_bar(title, plan.size) as on_bytes:
        done = copy(source, target, plan, on_bytes=on_bytes)
    unreadable = [error for error in done.failed if isinstance(error, UnreadableError)]
    damaged = [error for error in done.failed if not isinstance(error, UnreadableError)]
    if as_json:
        paths = {"damaged": [e.path for e in damaged], "unreadable": [e.path for e in unreadable]}
        left_out = {"left_out": [str(error) for error in [*plan.failed, *done.refused]]}
        print_json({"copied": done.shards, "present": plan.present, **paths, **left_out})
    else:
        n_producers = len(plan.missing) - len(done.refused)
        typer.echo(
            f"{counted(done.shards, 'shard')} of {counted(n_producers, 'producer')} copied to {target}; "
            f"{plan.present} there already"
        )
    for one in plan.missing:
        with suppress(UnreadableError):  # `copy` has met it, too
            ours, theirs = name_of(source, one), name_of(target, one)
            if ours not in (None, theirs):
                there = f"it '{theirs}'" if theirs else "another producer so"
                typer.echo(f"{source} calls producer {one[:12]} '{ours}'; {target} calls {there}", err=True)
    _require_none([*plan.failed, *done.refused, *unreadable])
    if done.vanished:
        raise CacheError(f"{source} was compacted or cleaned meanwhile; run the same command again")
    if damaged:
        raise CacheError(
            f"{counted(len(damaged), 'damaged shard')} not copied, first {damaged[0].path}; mend with: "
            f"python -m pipeline cache repair --store {source}"
        )


def _require_none(unreadable: "Sequence[CacheError]", more: str = "") -> None:
    """End with one line where something cannot be read: it names the first."""
    from cache import CacheError

    if unreadable:
        others = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise CacheError(f"{unreadable[0]}{others}{more}")


def _root(store: str | None, params: Path, changes: list[str]) -> str:
    from cache import store_root

    return store_root(load(params, changes).cache.root) if store is None else store


def _loaded(store: str | None, params: Path, changes: list[str]) -> "PipelineParams | None":
    """Read the parameters, which a store that is named can do without where there are none."""
    if store is not None and params == _DEFAULT and not changes and not params.exists():
        return None
    return load(params, changes)


def _chosen(root: str, prefixes: Sequence[str] | None) -> list[str]:
    from cache.names import find_producer
    from cache.store import producer_ids

    return sorted({find_producer(root, one) for one in prefixes}) if prefixes else producer_ids(root)


def _total_size(root: str, ids: Sequence[str]) -> int:
    from cache import UnreadableError
    from cache.commands.ls import describe

    total = 0
    for one in ids:
        with suppress(UnreadableError):  # who reads it will say so
            total += describe(root, one, on_unreadable=lambda _: None).size
    return total


def _parse_age(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,6})([dh])", text)
    if match is None:
        raise typer.BadParameter(f"{text} is no age; write days or hours, such as 90d or 12h")
    count = int(match[1])
    return timedelta(days=count) if match[2] == "d" else timedelta(hours=count)


def _parse_size(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(f"{text} is no size; write bytes, kB, MB, GB or TB, such as 20GB") from None
