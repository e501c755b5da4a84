"""What the student learns from: texts of all supervised languages, with labels and soft labels, in memory."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cache import MissingSoftLabelsError
from stages.artifacts import SOFT_LABELS
from stages.data.branches import branch_position
from stages.data.examples import NO_LABEL, examples_digest, read_entities, read_examples, taught_splits
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.processes import process_index
from stages.models.texts import Texts
from stages.progress import say
from stages.results.teachers import Teachers, said_by
from stages.student.card import TeacherFacts
from stages.student.objective import hardened, trusted
from stages.student.params import DistillParams
from stages.student.silver import SilverTexts, silver_texts
from stages.student.top_k import require_small_top_k_change
from stages.student.translations import Inherited, averaged, inherited
from stages.student.variants import HARD_ONLY, temperature_of, temperatures_of


def admitted(
    task: TaskParams, teachers: Mapping[str, Teachers], params: DistillParams
) -> tuple[TaskParams, dict[str, Teachers]]:
    """Leave out of the task and of its teachers what `student.distill.zero_shot_texts` leaves out.

    Args:
        task: Section `task`.
        teachers: Section `teachers`.
        params: Section `student.distill`.
    """
    if params.zero_shot_texts == "none":
        task = task.model_copy(update={"zero_shot_texts": False})
    all_of_them = params.zero_shot_texts == "all"
    return task, {name: one for name, one in teachers.items() if all_of_them or name in task.supervised}


def n_taught(task: TaskParams, teachers: Collection[str]) -> int:
    """Count the texts that may teach a student with soft labels: those without labels, too.

    Args:
        task: Section `task`.
        teachers: The languages in section `teachers`.
    """
    own: int = sum(
        read_examples(task, language, split).num_rows
        for language in task.supervised
        for split in taught_splits(task, language)
    )
    silver: int = sum(
        read_examples(task, language, split).num_rows
        for language in silver_languages(task, teachers)
        for split in taught_splits(task, language)
    )
    return own + len(inherited(task, teachers).originals) + silver


class Taught(NamedTuple):
    """What a student learns from.

    Attributes:
        texts: With labels and soft labels.
        digests: Of everything that was read.
        teachers: Where the soft labels come from.
    """

    texts: Texts
    digests: list[str]
    teachers: dict[str, list[TeacherFacts]]


def taught_texts(task: TaskParams, teachers: Mapping[str, Teachers], params: DistillParams) -> Taught:
    """Join what all supervised languages teach with its soft labels, once, in memory.

    Translations into zero-shot languages follow, where `task.zero_shot_texts` asks for them, with the hard
    labels of their originals and the average of these originals' soft labels.
    """
    hard_only = params.variant in HARD_ONLY
    tables = {
        language: pa.concat_tables(
            read_examples(task, language, split)
            for split in taught_splits(task, language)[: 1 if hard_only else None]
        )
        for language in task.supervised
    }
    translations = inherited(task, teachers)
    translated = translations.tables
    if hard_only:
        translated = {name: table.filter(table["label"].is_valid()) for name, table in translated.items()}
        tables |= {name: table for name, table in translated.items() if table.num_rows}
        digests = [examples_digest(table) for table in tables.values()]
        return Taught(texts_of(task, tables, params=params), digests, {})
    digests = [examples_digest(table) for table in tables.values()]
    if task.zero_shot_texts:
        _require_no_states(params)
    soft, states, of_labels, facts = _soft_labels(task, teachers, params, tables)
    digests += of_labels
    if params.average_translations:
        _require_translations(task)
    if params.average_translations or translated:
        soft = {tau: _with_translations(task, params, translations, tau, own) for tau, own in soft.items()}
        digests.append(hashlib.sha256(soft[temperature_of(params)].tobytes()).hexdigest())
    silver = silver_texts(task, teachers, params)
    if translated or silver.tables:
        _say_zero_shot(translations, silver)
        soft = {tau: np.concatenate([own, silver.logits]) for tau, own in soft.items()}
        digests += [examples_digest(table) for table in translated.values()] + silver.digests
        tables |= translated | silver.tables
    numbers = _numbers(tables, soft, params)
    if states:
        width = max(part.shape[1] for part in states)
        wide = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in states]
        numbers["teacher_states"] = np.concatenate(wide)
    return Taught(texts_of(task, tables, params=params, **numbers), digests, facts | silver.facts)


def _soft_labels(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    params: DistillParams,
    tables: Mapping[str, pa.Table],
) -> tuple[
    dict[float, NDArray[np.float32]], list[NDArray[np.float16]], list[str], dict[str, list[TeacherFacts]]
]:
    """Read what the teachers say of the texts of all supervised languages.

    Returns:
        By the temperature at which it is averaged, as logits, ``(N, C)``: that of the student, and 1 where
        trust is by probability; by language, hidden states, where they are asked for; digests of what is
        learned; and where it comes from.
    """
    own = temperature_of(params)
    logits: dict[float, list[NDArray[np.float32]]] = {tau: [] for tau in temperatures_of(params)}
    states, digests = [], []
    facts: dict[str, list[TeacherFacts]] = {}
    for language, table in tables.items():
        splits = taught_splits(task, language)
        said = said_by(task, teachers[language], language, splits)
        facts[language] = []
        for one, teacher in zip(said.each, teachers[language].all, strict=True):
            require_small_top_k_change(task, one.label_set, params, said)
            facts[language].append(TeacherFacts.of(teacher.title, one))
        if not said.has.all():
            n_missing, folder = int((~said.has).sum()), str(SOFT_LABELS / language)
            raise MissingSoftLabelsError(
                language=language, missing=n_missing, total=table.num_rows, folder=folder
            )
        for temperature, parts in logits.items():
            parts.append(said.together(temperature).astype(np.float32))
        digests.append(hashlib.sha256(logits[own][-1].tobytes()).hexdigest())
        if params.hidden_weight:
            if not all(one.has.all() for one in said.each):
                raise StageError(
                    "student.distill.hidden_weight needs hidden states of each teacher for each text; by "
                    f"task.source.teacher_field those of '{language}' have texts of their own; set it to 0"
                )
            states.append(_hidden_states([one.hidden for one in said.each], params, language))
            digests.append(hashlib.sha256(states[-1].tobytes()).hexdigest())
    return {tau: np.concatenate(parts) for tau, parts in logits.items()}, states, digests, facts


def _with_translations(
    task: TaskParams,
    params: DistillParams,
    translations: Inherited,
    temperature: float,
    logits: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Average soft labels over translations, where that is asked for, and add those of zero-shot languages.

    Args:
        task: Section `task`.
        params: Section `student.distill`.
        translations: Texts of zero-shot languages, M of them.
        temperature: τ at which probabilities are averaged.
        logits: Soft labels of the N texts of supervised languages, shape ``(N, C)``.

    Returns:
        Shape ``(N + M, C)``.
    """
    of_each = averaged(task, logits, temperature=temperature)
    own = of_each if params.average_translations else logits
    return np.concatenate([own, of_each[translations.originals]])


def _require_no_states(params: DistillParams) -> None:
    """Refuse to compare hidden states of texts that go through no branch.

    Raises:
        StageError: They are to be compared.
    """
    if params.hidden_weight:
        raise StageError(
            "student.distill.hidden_weight compares a branch's hidden states with its teacher's, and texts "
            "of zero-shot languages have no branch; set it to 0, or task.zero_shot_texts to false"
        )


def _say_zero_shot(translations: Inherited, silver: SilverTexts) -> None:
    """Say how many texts of zero-shot languages teach, and how many have nothing to say."""
    if process_index() == 0 and translations.tables:
        languages = ", ".join(translations.tables)
        others = f"; {translations.n_others:,} others are no translations" if translations.n_others else ""
        several = f"; {translations.n_contradictory:,} have originals with several labels, and take none"
        several *= bool(translations.n_contradictory)
        say(f"{len(translations.originals):,} translations teach, in {languages}{others}{several}")
    for note in silver.notes if process_index() == 0 else []:
        say(note)


def _numbers(
    tables: Mapping[str, pa.Table], logits: Mapping[float, NDArray[np.float32]], params: DistillParams
) -> dict[str, NDArray[Any]]:
    """Give the soft labels of all examples, ``(N, C)``, and how far each is trusted."""
    own = logits[temperature_of(params)]
    at_one = torch.from_numpy(logits.get(1.0, own))
    labels = torch.from_numpy(_labels(tables))
    soft, trust = trusted(torch.from_numpy(own), labels, how=params.trust, at_one=at_one)
    soft = hardened(soft) if params.variant == "pseudo" else soft
    return {"teacher_logits": soft.numpy(), **({} if trust is None else {"trust": trust.numpy()})}


def _labels(tables: Mapping[str, pa.Table]) -> NDArray[np.int64]:
    """Give the hard labels of several languages' examples, ``(N,)``."""
    labels = [table["label"].fill_null(NO_LABEL).to_numpy() for table in tables.values()]
    return np.concatenate(labels).astype(np.int64)


def _require_translations(task: TaskParams) -> None:
    """Refuse to average soft labels of texts of which each has one.

    Raises:
        StageError: No two texts are translations of each other.
    """
    named = [
        entity
        for language in task.supervised
        for split in taught_splits(task, language)
        for entity in read_entities(language, split)
        if entity is not None
    ]
    if len(set(named)) == len(named):
        raise StageError(
            "student.distill.average_translations is true, but no two training texts have the same entity; "
            "give translations of each other the same text in a column 'entity', or set it to false"
        )


def _hidden_states(
    states: Sequence[NDArray[np.float16] | None], params: DistillParams, language: str
) -> NDArray[np.float16]:
    """Give the teachers' hidden states side by side; they must be there."""
    kept = [part for part in states if part is not None]
    if len(kept) < len(states):
        raise StageError(
            f"student.distill.hidden_weight is {params.hidden_weight}, but the soft labels of '{language}' "
            "hold no hidden states; set teacher.label.hidden: true in params.yaml, and write them with: "
            f"python -m pipeline teacher label --language {language}"
        )
    return np.concatenate(kept, axis=1)


def texts_of(
    task: TaskParams,
    tables: Mapping[str, Any],
    *,
    params: DistillParams | None = None,
    **numbers: Any,
) -> Texts:
    """Put the examples of several languages one behind the other, with language ids and labels.

    Those of zero-shot languages have the id -1 and go through the mixture of all branches, but for varieties
    of a supervised language, which go through its branch.
    """
    languages = [branch_position(name, task.supervised) for name in tables]
    sizes = [table.num_rows for table in tables.values()]
    return Texts(
        [
            [text for table in tables.values() for text in table[field].to_pylist()]
            for field in task.text_fields
        ],
        {
            "language_ids": np.repeat(languages, sizes),
            "labels": _labels(tables),
            **numbers,
        },
        languages=np.repeat(np.arange(len(tables)), sizes),
        subword_dropout=params.subword_dropout if params else 0.0,
        seed=params.seed if params else 0,
    )
