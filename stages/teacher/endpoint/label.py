"""Stage one with a teacher behind HTTP: who it is, what the store lacks, and what is read from it then."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache import EndpointNotes, Producer, SoftLabels, Store
from cache.endpoint_notes import ENDPOINT
from stages.artifacts import TEACHERS, of_each_teacher
from stages.data.classes import match_classes
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.teacher.endpoint.asking import Tally, fill_by_asking
from stages.teacher.endpoint.event_loop import run
from stages.teacher.endpoint.identity import Endpoint, identify
from stages.teacher.labelling.examples import Examples
from stages.teacher.params import LabelParams, OneTeacher, TeacherParams


class ByEndpoint(NamedTuple):
    """What a teacher behind HTTP says of N examples.

    Attributes:
        producer: Who it is.
        soft_labels: As the store has them.
        order: Where the task's classes are among its own, shape ``(C,)``.
        letter_bias: What is to be added where they are read, shape ``(C,)``; None: nothing.
        n_asked: About how many it was asked now.
    """

    producer: Producer
    soft_labels: SoftLabels
    order: NDArray[np.int64]
    letter_bias: NDArray[np.float32] | None
    n_asked: int


def label_by_endpoint(
    task: TaskParams,
    teacher: OneTeacher,
    params: LabelParams,
    root: str,
    examples: Examples,
    place: Path,
    *,
    whole: Examples | None = None,
    accept_change: bool = False,
) -> ByEndpoint:
    """Give what a teacher behind HTTP says of all examples; it is asked about those that the store lacks.

    If the store has them all, nothing is sent.

    Args:
        task: Section `task` of params.yaml.
        teacher: One with an endpoint.
        params: Section `teacher.label`, for the shards' format.
        root: The store.
        examples: Of one language.
        place: Where `pin_soft_labels` wrote.
        whole: All examples of the language, where `examples` are a part of them.
        accept_change: See `fill_by_asking`.

    Raises:
        StageError: See `identify` and `fill_by_asking`; or its classes are not the task's.
        CacheError: The store cannot be used.
    """
    endpoint, store, order = known(task, teacher, root, examples.language, place)
    lookup, tally = fill_by_asking(
        endpoint, store, examples, whole or examples, format_=params.format, accept_change=accept_change
    )
    bias = EndpointNotes.read(store.folder).letter_bias if endpoint.wording.how.letter_bias else None
    if endpoint.wording.how.letter_bias and bias is None:
        raise StageError(
            f"{store.folder}/{ENDPOINT} has no letter bias of the teacher for '{examples.language}' now; "
            "run this again"
        )
    soft_labels = lookup.soft_labels()
    return ByEndpoint(
        store.producer,
        soft_labels,
        order,
        None if bias is None else np.array(bias, np.float32),
        tally.answered,
    )


def known(
    task: TaskParams, teacher: OneTeacher, root: str, language: str, place: Path
) -> tuple[Endpoint, Store, NDArray[np.int64]]:
    """Identify a teacher, and find the task's classes among its own."""
    endpoint = run(identify(task, teacher, root, place, language=language))
    classes = endpoint.producer.classes
    order = match_classes(classes, task.classes, names=teacher.labels, language=language)
    store = Store(root, endpoint.producer)
    store.note_use(teacher=teacher.title, language=language)
    return endpoint, store, order


class Tried(NamedTuple):
    """What a first try with a few texts came to.

    Attributes:
        language: Of the texts.
        tally: Of what was asked.
        n_missing: Texts that the store lacked before.
    """

    language: str
    tally: Tally
    n_missing: int

    def line(self) -> str:
        """Say it in one line."""
        if not self.n_missing:
            return f"{self.language}: the store has every answer; there is nothing to ask"
        tally = self.tally
        if not tally.answered + tally.failed:
            return f"{self.language}: answers of a run that was stopped are stored now; nothing was asked"
        share = self.n_missing / max(tally.answered, 1)
        minutes = tally.seconds * share / 60
        tokens = f"{round(tally.tokens * share):,} tokens and " if tally.tokens else ""  # TEI counts none
        return (
            f"{self.language}: {tally.answered:,} of {self.n_missing:,} missing answers are stored now: "
            f"{tally.line()}; all of them take about {tokens}{minutes:,.1f} minutes"
        )


def try_out(
    task: TaskParams,
    teacher: TeacherParams,
    params: LabelParams,
    root: str,
    language: str,
    *,
    limit: int,
    accept_change: bool,
) -> str:
    """Ask each of a language's teachers behind HTTP about a few random texts; write no set.

    Args:
        task: Section `task` of params.yaml.
        teacher: Section `teachers.<language>`.
        params: Section `teacher.label`.
        root: The store.
        language: One of the task's.
        limit: So many texts, at most.
        accept_change: See `fill_by_asking`.

    Returns:
        A line for each of them.

    Raises:
        StageError: As `label_by_endpoint`, or none of the teachers is behind HTTP.
        CacheError: The store cannot be used.
    """
    examples, lines = Examples.read(task, language), []
    names = [one.name for one in teacher.all]
    places = of_each_teacher(TEACHERS / language, len(teacher.all))
    for number, (one, place) in enumerate(zip(teacher.all, places, strict=True)):
        if one.endpoint is None:
            continue
        its = examples.of_teacher(number, names)
        endpoint, store, _ = known(task, one, root, language, place)
        misses = np.flatnonzero(~store.look_up(its.ids).found)
        some = np.sort(np.random.default_rng().permutation(misses)[:limit])
        tally = Tally()
        if len(some):
            _, tally = fill_by_asking(
                endpoint, store, its.at(some), its, format_=params.format, accept_change=accept_change
            )
        lines.append(Tried(language, tally, len(misses)).line())
    if not lines:
        raise StageError(
            f"--limit is for teachers behind an endpoint, and '{language}' has none; leave it out"
        )
    return "\n".join(lines)
