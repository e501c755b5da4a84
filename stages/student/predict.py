"""Classify texts with the student: by its language's branch, or by the mixture where there is none."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.artifacts import STUDENT
from stages.data.branches import branch_of
from stages.data.files import Input
from stages.data.languages import language_id
from stages.data.output import Output, columns_of
from stages.data.rows import Window, column, windows
from stages.errors import StageError
from stages.models.batches import current_device, to_device, tokenize
from stages.models.loading import require_max_tokens
from stages.models.precision import say_if_slower
from stages.models.students import class_names, load_student
from stages.progress import Bar
from stages.student.params import DistillParams, EvaluateParams

WINDOW = 20_000
"""Examples in memory at a time; batches of similar length are made within them."""
_NAMED = 5
"""Languages without a branch that are named in the end."""


@dataclass(frozen=True)
class Predicted:
    """What was classified.

    Attributes:
        examples: Their count.
        abstained: How many of them have no label, since no class is probable enough; None: all have one.
        branches: How many of them went through each branch, or the mixture.
        without_branch: How many named a language that has no branch, by language.
        output: The file, or None for standard output.
        cut: How many were longer than allowed.
        max_tokens: What is allowed.
    """

    examples: int
    abstained: int | None
    branches: Counter[str]
    without_branch: Counter[str]
    output: Path | None
    cut: int
    max_tokens: int

    def line(self) -> str:
        """Say it in one line."""
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.branches.items()))
        place = "" if self.output is None else f" in {self.output}"
        cut = f"; {self.cut:,} cut to student.distill.max_tokens, {self.max_tokens}" if self.cut else ""
        rest = f"{self._abstained()}; by branch: {counts}{self._without_branch()}{cut}"
        return f"{self.examples:,} example{'s' * (self.examples != 1)}{place}{rest}"

    def _abstained(self) -> str:
        if self.abstained is None:
            return ""
        share = self.abstained / self.examples
        return f"; {self.abstained:,} ({share:.0%}) without a label, since no class is probable enough"

    def _without_branch(self) -> str:
        named = [f"{name} {count:,}" for name, count in self.without_branch.most_common(_NAMED)]
        more = len(self.without_branch) - len(named)
        others = [f"{more} more languages"] if more else []
        return f"; without a branch of their own: {', '.join(named + others)}" if named else ""


def predict(
    source: Input,
    output: Output,
    distill: DistillParams,
    evaluate: EvaluateParams,
    *,
    model: Path = STUDENT,
    language: str | None = None,
    prefix: str = "",
    calibrated: bool = True,
    abstain_below: float | None = None,
    window: int = WINDOW,
) -> Predicted:
    """Write every example as it is, and ``label``, ``probabilities`` by class and ``branch``, in its order.

    Args:
        source: The examples.
        output: Where they go.
        distill: Section `student.distill`, of which `max_tokens` and `precision` are used.
        evaluate: Section `student.evaluate`: a batch has at most the tokens of `batch_size` full examples.
        model: The student's folder.
        language: Of all examples, where `source` names no column for it.
        prefix: Put before the names of the three columns.
        calibrated: Whether logits are divided by the student's temperatures.
        abstain_below: An example whose most probable class is less probable gets null for a label; None: all
            get one.
        window: Examples in memory at a time.

    Raises:
        StageError: There is no student, or the input or output is not as it has to be.
    """
    if language is not None and source.language_field is not None:
        raise StageError("the language comes from --language or from --language-field, not from both")
    names = [f"{prefix}{name}" for name in ("label", "probabilities", "branch")]
    _require_one_text_or_two(source.text_fields)
    output.require_free()
    branches: Counter[str] = Counter()
    without_branch: Counter[str] = Counter()
    examples_by_window = windows(source, window, reserved=names)
    first = next(examples_by_window, None)
    if first is None:
        raise StageError(f"{source.name} holds no examples")
    _require_language_field(first, source)
    has_no_types = source.format == "jsonl" and source.is_file  # what is none can be read only once
    columns = (
        columns_of(windows(source, window, reserved=names)) if output.is_parquet and has_no_types else None
    )
    student = _Student(model, distill, evaluate.batch_size * distill.max_tokens, calibrated=calibrated)
    student.require_as_many_texts(source.text_fields)
    n_abstained = 0
    with (
        output.writing(columns) as write,
        Bar(total=source.count(), desc="predict", unit="example", delay=2) as bar,
    ):
        for examples in chain([first], examples_by_window):
            n = len(examples)
            languages = _languages(examples, source, language)
            ids = student.language_ids(languages, source, branches.total())
            probabilities = np.empty((n, len(student.classes)), np.float32)
            texts = [column(examples, field) for field in source.text_fields]
            for positions, found in student.probabilities(texts, ids):
                probabilities[positions] = found
                bar.update(len(positions))
            used = [student.branch(i) for i in ids]
            unsure = probabilities.max(axis=1) < (abstain_below or 0.0)
            n_abstained += int(unsure.sum())
            write(examples, pa.table(_columns(student.classes, probabilities, unsure, used), names=names))
            branches.update(used)
            without_branch.update(
                one for one, i in zip(languages, ids, strict=True) if one and one.strip() and i < 0
            )
    return Predicted(
        branches.total(),
        None if abstain_below is None else n_abstained,
        branches,
        without_branch,
        output.path,
        student.n_cut,
        distill.max_tokens,
    )


class _Student:
    """A student on its device.

    Attributes:
        classes: Their names.
        n_cut: Examples so far that were longer than allowed.
    """

    def __init__(self, folder: Path, params: DistillParams, batch_tokens: int, *, calibrated: bool) -> None:
        self._folder, self._params, self._batch_tokens = folder, params, batch_tokens
        self._device = current_device()
        say_if_slower(params.precision, key="student.distill.precision")
        self._model, self._tokenizer = load_student(folder)
        self._config = self._model.config
        self._model.to(self._device)  # type: ignore[arg-type]  # transformers' decorator hides self
        require_max_tokens(params.max_tokens, self._tokenizer, self._config, key="student.distill.max_tokens")
        own, mixture = self._config.own_temperature, self._config.mixture_temperature
        self._temperatures = (own, mixture) if calibrated else (1.0, 1.0)
        self.classes = class_names(self._config)
        self.n_cut = 0
        self._language_ids: dict[str | None, int] = {}

    def language_ids(
        self, languages: Sequence[str | None], source: Input, n_before: int
    ) -> NDArray[np.int64]:
        """Find the branches of N examples' languages, or of what these are varieties of; -1: the mixture.

        Args:
            languages: Tags; None or nothing stands for the mixture.
            source: Where they come from.
            n_before: Examples before them.

        Raises:
            StageError: A name is no language tag, or another tag of a language that has a branch.
        """
        for row, name in enumerate(languages, n_before + 1):
            if name not in self._language_ids:
                field = source.language_field
                where = f"{source.name}, example {row:,}: {field}" if field else "--language"
                self._language_ids[name] = self._language_id(name or "", where)
        return np.array([self._language_ids[name] for name in languages])

    def _language_id(self, name: str, where: str) -> int:
        try:
            return language_id(name, self._config.languages)
        except ValueError as error:
            raise StageError(f"{where}: {error}") from error

    def require_as_many_texts(self, text_fields: Sequence[str]) -> None:
        """Refuse pairs where the student learned from single texts, and the other way round.

        Raises:
            StageError: The examples are such.
        """
        known = self._config.text_fields  # None: an earlier version did not write it down
        if known and len(known) != len(text_fields):
            raise StageError(
                f"the student in {self._folder} reads {' and '.join(known)}, and is to be given "
                f"{' and '.join(text_fields)}; name as many columns with --text-field"
            )

    def branch(self, language_id: int) -> str:
        """Name the branch of a language; where all languages share one, it is the mixture."""
        return branch_of(language_id, self._config.languages, self._config.n_branches)

    @torch.inference_mode()
    def probabilities(
        self, fields: Sequence[Sequence[str]], language_ids: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Classify N examples in batches of similar length, the longest first.

        Yields:
            Positions, ``(B,)``, and probabilities, float32, ``(B, C)``.

        Raises:
            StageError: A probability is NaN.
        """
        tokens = tokenize(self._tokenizer, fields, max_tokens=self._params.max_tokens)
        self.n_cut += tokens.n_cut
        for texts in tokens.batches(self._batch_tokens):
            positions = tokens.positions[texts]
            batch = to_device(tokens.batch(texts, self._tokenizer), self._device)
            ids = torch.from_numpy(language_ids[positions]).to(self._device)
            bfloat16 = self._params.precision == "bfloat16"
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bfloat16):
                logits = self._model(**batch, language_ids=ids).logits
            own, mixture = self._temperatures
            temperatures = torch.where(ids < 0, mixture, own).unsqueeze(1)
            found = (logits.float() / temperatures).softmax(dim=-1).cpu().numpy()
            if np.isnan(found).any():
                broken = positions[np.isnan(found).any(axis=1)][0]
                raise StageError(
                    f"the student in {self._folder} gives NaN, first for {fields[0][broken]!r}; "
                    "try --set student.distill.precision=float32, or train it again"
                )
            yield positions, found


def _require_one_text_or_two(text_fields: Sequence[str]) -> None:
    """Refuse more columns of texts than a pair has, or the same one twice."""
    if len(text_fields) > 2 or len(set(text_fields)) < len(text_fields):
        raise StageError(
            f"--text-field names {', '.join(text_fields)}; an example has one text, or two others"
        )


def _require_language_field(examples: Window, source: Input) -> None:
    """Refuse JSONL in whose first window no example says its language; a table has it or was refused."""
    name = source.language_field
    if name is not None and isinstance(examples, list) and not any(name in example for example in examples):
        raise StageError(f"{source.name} has no '{name}' in its first {len(examples):,} examples")


def _languages(examples: Window, source: Input, language: str | None) -> Sequence[str | None]:
    name = source.language_field
    return [language] * len(examples) if name is None else column(examples, name)


def _columns(
    classes: list[str],
    probabilities: NDArray[np.float32],
    unsure: NDArray[np.bool_],
    branches: list[str],
) -> list[pa.Array]:
    """Give label, probabilities and branch; the probabilities are a struct with a field per class."""
    labels = pa.array(classes).take(pa.array(probabilities.argmax(axis=1), mask=unsure))
    by_class = pa.StructArray.from_arrays([pa.array(p) for p in probabilities.T], names=classes)
    return [labels, by_class, pa.array(branches)]
