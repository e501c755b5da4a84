"""What came of the ablation: accuracies of its runs over seeds, and how sure their differences are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from cache import write_atomically
from stages.ablation.finished import Finished, read_finished, read_kept
from stages.ablation.params import AblationParams
from stages.ablation.plan import digest_of, settings_of, soft_labels_of
from stages.artifacts import ABLATION
from stages.data.silver import silver_languages
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.results.intervals import interval
from stages.results.teachers import Teachers
from stages.student.params import DistillParams, StudentSection
from stages.student.variants import not_inherited


def compare(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    student: StudentSection,
    params: AblationParams,
    *,
    sweep: bool,
) -> list[Path]:
    """Write ``test.md`` and ``validation.md`` of the variants, or ``sweep.md``, each as JSON as well.

    Returns:
        The tables, the one that matters most first.

    Raises:
        StageError: Predictions of a run are not there, are not of the current data or parameters, or were
            made of something else than the others.
        CacheError: There are no soft labels.
    """
    wanted = _wanted(task, student, params)
    of_today = digest_of(soft_labels_of(task, teachers))
    runs = _runs(params, sweep=sweep)
    finished = read_finished(task, runs, sweep=sweep, wanted=wanted, soft_labels=of_today)
    paths = []
    for name, compared in _tables(task, teachers, student, params, finished, sweep=sweep).items():
        path = ABLATION / f"{name}.md"
        write_atomically(path.with_suffix(".json"), json.dumps(compared.values(), indent=1).encode())
        write_atomically(path, compared.markdown().encode())
        paths.append(path)
    return paths


def compare_kept(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    student: StudentSection,
    params: AblationParams,
    *,
    sweep: bool,
) -> str:
    """Make the same tables of the runs that were kept, without any data; gives them as Markdown.

    Raises:
        StageError: A run was not kept, or is of other parameters.
    """
    if params.kept is None:
        raise StageError("ablation.kept is null; name the folder of the runs that were kept")
    runs, wanted = _runs(params, sweep=sweep), _wanted(task, student, params)
    finished = read_kept(runs, Path(params.kept), sweep=sweep, wanted=wanted)
    tables = _tables(task, teachers, student, params, finished, sweep=sweep)
    return "\n".join(one.markdown() for one in tables.values())


def _wanted(task: TaskParams, student: StudentSection, params: AblationParams) -> dict[str, dict[str, Any]]:
    """Give the parameters that each run must have been made with, by its name."""
    settings = params.settings(student.distill)
    return {run: settings_of(task, of_run) for run, of_run in settings.items()}


def _runs(params: AblationParams, *, sweep: bool) -> dict[str, list[int]]:
    """Give the seeds of each run by its name."""
    if sweep:
        return {run.name: params.sweep.seeds for run in params.sweep.runs}
    return dict.fromkeys(params.variants, params.seeds)


def _tables(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    student: StudentSection,
    params: AblationParams,
    finished: Finished,
    *,
    sweep: bool,
) -> dict[str, "Compared"]:
    """Compare runs: those of a sweep on validation data alone, for they have seen no test data."""
    splits: dict[str, Split] = (
        {"sweep": "validation"} if sweep else {"test": "test", "validation": "validation"}
    )
    runs = _runs(params, sweep=sweep)
    settings = params.settings(student.distill)
    silver = silver_languages(task, teachers)
    taught = [run for run in runs if task.zero_shot_texts and reads_others(task, settings[run], silver)]
    return {name: Compared.of(task, split, runs, finished, taught) for name, split in splits.items()}


def reads_others(task: TaskParams, settings: DistillParams, silver: list[str]) -> bool:
    """Tell whether texts of zero-shot languages may teach a run.

    What a teacher says of them is nothing to a variant without soft labels; what their originals say is.
    """
    left_out = not_inherited(settings, silver).get("silver", [])
    return settings.zero_shot_texts != "none" and len(left_out) < len(task.zero_shot)


@dataclass(frozen=True)
class Compared:
    """Accuracies of M runs with S seeds on languages of N examples; an average counts each language alike.

    Attributes:
        split: Of the examples.
        runs: Names; the others are compared with the first.
        seeds: Of each run.
        groups: Languages by kind, those of a kind that has some.
        right: By language, whether a prediction is right, 0 or 1, shape ``(M, S, N)``.
        entities: By language, what each example is about, shape ``(N,)``; translations have the same number.
        teachers: Accuracy by supervised language.
        taught: Runs in which texts of zero-shot languages taught, too.
    """

    split: Split
    runs: list[str]
    seeds: list[int]
    groups: dict[str, list[str]]
    right: dict[str, NDArray[np.int64]]
    entities: dict[str, NDArray[np.int64]]
    teachers: dict[str, float]
    taught: list[str]

    @classmethod
    def of(
        cls,
        task: TaskParams,
        split: Split,
        runs: Mapping[str, list[int]],
        finished: Finished,
        taught: list[str],
    ) -> "Compared":
        """Compare runs on one split; each has the same seeds."""
        seeds = next(iter(runs.values()))
        rights = [[finished.right[f"{run}-{seed}"] for seed in seeds] for run in runs]
        groups = {
            kind: [language for language in languages if (language, split) in rights[0][0]]
            for kind, languages in task.groups.items()
        }
        groups = {kind: languages for kind, languages in groups.items() if languages}
        languages = [language for names in groups.values() for language in names]
        right = {
            language: np.array(
                [[of_seed[language, split] for of_seed in of_run] for of_run in rights], dtype=np.int64
            )
            for language in languages
        }
        teachers = {
            name: finished.teachers[name][split]
            for name in groups.get("supervised", [])
            if split in finished.teachers[name]
        }
        entities = {language: finished.entities[language, split] for language in languages}
        return cls(split, [*runs], seeds, groups, right, entities, teachers, taught)

    @property
    def languages(self) -> list[str]:
        """All languages, those of a kind together."""
        return [*self.right]

    @property
    def n_entities(self) -> int:
        """How many different texts there are, where translations of one are not different."""
        return len(np.unique(np.concatenate([*self.entities.values()])))

    def values(self) -> dict[str, Any]:
        """Give all numbers, for programs; differences are those to the first run."""
        teachers = {
            kind: float(np.mean([self.teachers[language] for language in languages]))
            for kind, languages in self.groups.items()
            if set(languages) <= set(self.teachers)
        }
        return {
            "split": self.split,
            "seeds": self.seeds,
            "entities": self.n_entities,
            "teachers": {**teachers, "languages": self.teachers},
            "runs": {
                run: {
                    **{kind: self._of(place, languages) for kind, languages in self.groups.items()},
                    "languages": {language: self._of(place, [language]) for language in self.languages},
                }
                for place, run in enumerate(self.runs)
            },
        }

    def _of(self, run: int, languages: Sequence[str]) -> dict[str, Any]:
        """Give mean, standard deviation and difference to the first run, averaged over languages."""
        by_seed = np.mean([self.right[name].mean(axis=-1) for name in languages], axis=0)  # (M, S)
        low, high = 0.0, 0.0  # the first run does not differ from itself
        if run:
            low, high = interval(
                [self.right[name][run] - self.right[name][0] for name in languages],
                [self.entities[name] for name in languages],
            )
        return {
            "mean": float(by_seed[run].mean()),
            "deviation": float(by_seed[run].std(ddof=1)) if len(self.seeds) > 1 else None,
            "by_seed": by_seed[run].tolist(),
            "difference": {
                "mean": float((by_seed[run] - by_seed[0]).mean()),
                "low": low,
                "high": high,
            },
        }

    def markdown(self) -> str:
        """Give the averages with their differences, and each language, as two tables with their captions."""
        values = self.values()
        kinds = list(self.groups)
        head = ["", *(title for kind in kinds for title in (kind, f"over {self.runs[0]}"))]
        teachers = [_number(values["teachers"].get(kind)) for kind in kinds]
        averages = [["teachers", *(cell for text in teachers for cell in (text, ""))]]
        for place, run in enumerate(self.runs):
            of_run = [values["runs"][run][kind] for kind in kinds]
            differences = [_difference(one["difference"]) if place else "" for one in of_run]
            pairs = zip(map(_spread, of_run), differences, strict=True)
            averages.append([run, *(cell for pair in pairs for cell in pair)])
        by_language = [
            [
                language,
                _number(self.teachers.get(language)),
                *(_spread(values["runs"][run]["languages"][language]) for run in self.runs),
            ]
            for language in self.languages
        ]
        seeds = "1 seed" if len(self.seeds) == 1 else f"mean ± standard deviation of {len(self.seeds)} seeds"
        n_languages = " and ".join(f"{len(names)} {kind}" for kind, names in self.groups.items())
        which = "" if self.taught == self.runs else f" in {', '.join(self.taught)}"
        taught = f"Texts of zero-shot languages taught{which}, too, without labels of their own.\n"
        return (
            f"{self.split.capitalize()} accuracy, {seeds}, averaged over {n_languages} languages.\n"
            f"{taught if self.taught else ''}"
            f"Differences with 95 % intervals {self._of_what()}\n\n"
            f"{_table(head, averages)}\n\n"
            f"{_table(['', 'teacher', *self.runs], by_language)}\n"
        )

    def _of_what(self) -> str:
        """Say of what intervals are."""
        texts = f"{self.n_entities:,} texts"
        over = f"over {texts} alone" if len(self.seeds) == 1 else f"over seeds and {texts}"
        if len(self.languages) == 1:
            return f"{over}."
        if self.n_entities == sum(map(len, self.entities.values())):
            return f"{over}, of which none is known to be a translation of another."
        return f"{over}; translations of a text count as one."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _spread(one: dict[str, Any]) -> str:
    deviation = one["deviation"]
    return _number(one["mean"]) + ("" if deviation is None else f" ± {deviation:.3f}")


def _difference(one: dict[str, float]) -> str:
    return f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="pipe", stralign="right", colalign=("left",), disable_numparse=True)
