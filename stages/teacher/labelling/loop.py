"""The labelling loop: what a store lacks goes through the teacher, shard by shard."""

import secrets
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import (
    CacheError,
    Lookup,
    Outputs,
    Producer,
    SoftLabels,
    Store,
    TopKChange,
    canonical_json,
    id_words,
)
from stages.artifacts import ARTIFACTS
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.progress import Bar, say
from stages.teacher.labelling.examples import Examples
from stages.teacher.labelling.identity import producer_of
from stages.teacher.params import LabelParams

if TYPE_CHECKING:
    from stages.models.batches import Tokens
    from stages.teacher.labelling.inference import Answers, Teacher

# Fewer examples than `shard_examples` make a shard where that leaves processes that label at once few shards
# to go different ways with, but not so few that batches of similar lengths are hard to find among them.
_SHARDS, _FEW = 16, 8192

_APPENDED = 1 << 28
"""Bytes of soft labels that are written at once, at most: far below what the store takes."""

_SHARD_TEXT = 1 << 24
"""Bytes of text in a shard, at most, so that its tokens need little memory however long its texts are."""


def fill(params: LabelParams, store: Store, folder: Path, examples: Examples) -> tuple[Lookup, int]:
    """Let a store have the soft labels of all examples: the teacher is asked for those that it lacks.

    Args:
        params: Section `teacher.label`.
        store: Of the teacher's producer.
        folder: Where the teacher's files are.
        examples: N of them.

    Returns:
        The soft labels, and how many examples went through the teacher.

    Raises:
        StageError: The teacher cannot be used, its files are no longer those by which it was identified, or
            the store still lacks soft labels when all is done.
        CacheError: The store cannot be used.
    """
    lookup = store.look_up(examples.ids, overflow=ARTIFACTS)
    with told(store, lookup, examples):
        n_labelled = 0 if lookup.found.all() else _label_misses(params, store, lookup, folder, examples)
        n_missing = int(np.count_nonzero(~lookup.found))
        if n_missing:
            raise StageError(
                f"{n_missing:,} of {len(examples):,} examples in '{examples.language}' are not in "
                f"{store.folder} after they were labelled; run the same command again"
            )
    return lookup, n_labelled


@contextmanager
def told(store: Store, lookup: Lookup, examples: Examples) -> Iterator[None]:
    """Say what the store has before the work, and what it has kept where the work ends early.

    What is damaged or cannot be read is told once, whether it was met before the work or during it.
    """
    already = set()

    def tell_what_is_left_out() -> None:
        for name, error in [*store.damaged.items(), *store.unreadable.items()]:
            if name not in already:
                already.add(name)
                is_shard = name != "producer.json"
                without = "its examples are labelled again" if is_shard else "going on without it"
                say(f"{error}; {without}")

    n_cached = int(lookup.found.sum())
    tell_what_is_left_out()
    say(f"{examples.language}: {n_cached:,} cached, {len(examples) - n_cached:,} to label")
    try:
        yield
    finally:
        tell_what_is_left_out()
        n_kept = int(lookup.found.sum())
        if n_kept < len(examples):
            say(f"stopped; {n_kept:,} of {len(examples):,} soft labels are kept")


class Shard(NamedTuple):
    """Examples that are labelled together and become one shard of the store.

    Attributes:
        positions: Among the examples, rising, shape ``(n,)``.
        n_bytes: Of their texts.
    """

    positions: NDArray[np.int64]
    n_bytes: int


def shards_to_label(examples: Examples, misses: NDArray[np.int64], *, at_most: int) -> list[Shard]:
    """Cut the examples that have no soft label into the shards to be.

    Args:
        examples: All that are wanted.
        misses: Positions among them, rising.
        at_most: Examples in a shard.
    """
    sizes = examples.sizes()[misses]
    through = np.cumsum(sizes, dtype=np.int64)
    shards = []
    start = n_bytes = 0
    while start < len(misses):
        stop = int(np.searchsorted(through, n_bytes + _SHARD_TEXT, side="right"))
        stop = min(max(stop, start + 1), start + at_most, len(misses))
        shards.append(Shard(misses[start:stop], int(through[stop - 1]) - n_bytes))
        start, n_bytes = stop, int(through[stop - 1])
    return shards


def load_teacher(folder: Path, params: LabelParams, task: TaskParams, producer: Producer) -> "Teacher":
    """Load the teacher by whose files a producer was identified.

    Raises:
        StageError: It cannot be loaded, or its files are others by now.
    """
    from stages.teacher.labelling.inference import Teacher  # slow import: torch

    teacher = Teacher(folder, params)
    if producer_of(folder, task, params) != producer:
        raise StageError(
            f"the files in {folder}, or what the tokenizer on this machine makes of them, changed while the "
            "teacher was loaded; run it again"
        )
    return teacher


def append(
    ids: pa.FixedSizeBinaryArray, answers: "list[Answers]", store: Store, params: LabelParams
) -> dict[str, SoftLabels]:
    """Write what a teacher answered.

    Args:
        ids: Of the examples that were asked about.
        answers: At least one batch.
        store: Where to.
        params: Section `teacher.label`.

    Returns:
        What was written, by the names of the shards.
    """
    positions = np.concatenate([batch.positions for batch in answers])
    logits = np.concatenate([batch.logits for batch in answers])
    hidden = [batch.hidden for batch in answers if batch.hidden is not None]
    states = np.concatenate(hidden) if hidden else None
    outputs = store.producer.outputs
    soft_labels = SoftLabels.pack(ids.take(pa.array(positions)), logits, states, outputs=outputs)
    soft_labels = replace(soft_labels, made_with=(canonical_json(made_with(params)).decode(),))
    step = max(1, _APPENDED // sum(values[:1].nbytes for values in soft_labels.columns.values()))
    parts = [soft_labels.take(slice(i, i + step)) for i in range(0, len(soft_labels), step)]
    return {store.append(part, format_=params.format): part for part in parts}


def made_with(params: LabelParams) -> dict[str, str]:
    """Say what computes here: it is in no producer's id, and should move a logit by its last bits at most."""
    import torch  # slow import

    from stages.models.batches import current_device  # likewise

    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    device = current_device()
    return {
        **libraries,
        "precision": params.precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }


def share_to_measure(n_misses: int) -> float:
    """Give the share of the examples to label on which is measured what top-k changes, as they come by."""
    return min(1.0, 1.2 * TopKChange.WANTED / n_misses)


def sample_top_k(
    ids: pa.FixedSizeBinaryArray, answers: "list[Answers]", outputs: Outputs, *, share: float
) -> TopKChange | None:
    """Measure what top-k changes on some of the examples that a teacher answered, chosen by their ids.

    Args:
        ids: Of the examples that were asked about.
        answers: About them, with all logits.
        outputs: What is kept of them.
        share: Of the examples that is taken.

    Returns:
        None where all logits are kept, or no example was chosen.
    """
    if outputs.top_k is None or not answers:
        return None
    positions = np.concatenate([batch.positions for batch in answers])
    chosen = id_words(ids)[positions, 1] <= np.uint64(int(share * (2**64 - 2**11)))
    if not chosen.any():
        return None
    return TopKChange.measure(np.concatenate([batch.logits for batch in answers])[chosen], outputs)


@contextmanager
def measuring(store: Store) -> Iterator[list[TopKChange]]:
    """Let a store know what is measured on examples that it had not had, however the work ends."""
    changes: list[TopKChange] = []
    try:
        yield changes
    finally:
        known = TopKChange.read(store.folder) if changes else None
        if changes and (known is None or known.examples < TopKChange.WANTED):
            reduce(add, [*changes, known] if known else changes).note(store.folder)


def measured_top_k(params: LabelParams, store: Store, folder: Path, examples: Examples) -> TopKChange | None:
    """Give what top-k changes for a producer, as it was measured when its examples were labelled.

    A store that knows of too few examples, such as one of an earlier version, is told: the teacher is asked
    about as many as it takes.

    Returns:
        None where all logits are kept.

    Raises:
        StageError: The teacher has to be asked and cannot be used.
    """
    if params.top_k is None:
        return None
    known = TopKChange.read(store.folder)
    if known and known.is_enough(len(examples)):
        return known
    drawn = np.sort(np.argsort(id_words(examples.ids)[:, 1], kind="stable")[: TopKChange.WANTED])
    say(
        f"{examples.language}: asking the teacher about {len(drawn):,} examples, to measure what top_k "
        f"{params.top_k} changes"
    )
    teacher = load_teacher(folder, params, examples.task, store.producer)
    answers = teacher.answer(teacher.tokenize(examples.texts(drawn)))
    change = TopKChange.measure(np.concatenate([batch.logits for batch in answers]), store.producer.outputs)
    change.note(store.folder)
    return change


def _label_misses(params: LabelParams, store: Store, lookup: Lookup, folder: Path, examples: Examples) -> int:
    """Run the teacher on what the store has not.

    Shards are taken in random order, and the store is looked at before each: processes that label the same
    examples at once go different ways, and one leaves out what another has finished. While the teacher is
    busy with a shard, the next one is turned into tokens and the one before is written.

    Returns:
        The number of examples that went through the teacher.
    """
    store.create()
    teacher = load_teacher(folder, params, examples.task, store.producer)
    misses = np.flatnonzero(~lookup.found)
    at_most = min(params.shard_examples, max(_FEW, len(misses) // _SHARDS))
    shards = shards_to_label(examples, misses, at_most=at_most)
    share = share_to_measure(len(misses))

    def next_tokens() -> "tuple[Shard, Tokens]":
        shard = shards.pop(secrets.randbelow(len(shards)))
        return shard, teacher.tokenize(examples.texts(shard.positions))

    with (
        measuring(store) as changes,
        Progress(
            examples.language, sum(shard.n_bytes for shard in shards), max_tokens=params.max_tokens
        ) as progress,
        _Writer(params, store, lookup) as writer,
        ThreadPoolExecutor(1) as ahead,
    ):
        coming: Future[tuple[Shard, Tokens]] | None = ahead.submit(next_tokens)
        while coming:
            shard, tokens = coming.result()
            coming = ahead.submit(next_tokens) if shards else None
            store.update(lookup)
            wanted = ~lookup.found[shard.positions]
            n_tokens = int(tokens.lengths.sum())
            tokens = tokens if wanted.all() else tokens.keep(wanted)
            n_left = int(tokens.lengths.sum())
            progress.begin(shard.n_bytes, n_tokens, n_cut=tokens.n_cut, n_done=n_tokens - n_left)
            answers: list[Answers] = []
            try:
                for batch in teacher.answer(tokens):
                    writer.raise_failure()
                    answers.append(batch)
                    progress.add(len(batch.positions), batch.tokens, batch.cells)
            finally:  # what ends the run, an error or Ctrl-C, loses nothing that is computed
                if answers:
                    ids = lookup.ids.take(pa.array(shard.positions))
                    writer.write(ids, answers)
                    change = sample_top_k(ids, answers, store.producer.outputs, share=share)
                    changes += [change] if change else []
    return progress.n_examples


class _Writer:
    """Writes a shard while the teacher is busy with the next one; what is given to it is written."""

    def __init__(self, params: LabelParams, store: Store, lookup: Lookup) -> None:
        self._params, self._store, self._lookup = params, store, lookup
        self._thread = ThreadPoolExecutor(1)
        self._writing: deque[Future[dict[str, SoftLabels]]] = deque()

    def write(self, ids: pa.FixedSizeBinaryArray, answers: "list[Answers]") -> None:
        """Begin to write what a teacher answered to examples with these ids; wait for the shard before."""
        self._writing.append(self._thread.submit(append, ids, answers, self._store, self._params))
        while len(self._writing) > 1:
            self._finish()

    def raise_failure(self) -> None:
        """Raise what went wrong with a shard, if anything has."""
        if self._writing and self._writing[0].done():
            self._finish()

    def _finish(self) -> None:
        """Wait for the oldest shard; from then on the look-up has it."""
        wait([self._writing[0]])  # what interrupts this leaves the shard where it is
        for name, soft_labels in self._writing.popleft().result().items():
            self._lookup.seen.add(name)
            self._lookup.fill(soft_labels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        failures = []
        with _no_interruption():
            while self._writing:
                try:
                    self._finish()
                except (CacheError, OSError) as error:
                    failures.append(error)
            self._thread.shutdown()
        if failures:
            raise failures[0]


@contextmanager
def _no_interruption() -> Iterator[None]:
    """Put off Ctrl-C and a scheduler's stop until what is computed is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stops: list[int] = []

    def put_off(number: int, _frame: object) -> None:
        stops.append(number)
        if len(stops) == 1:
            say("writing what is computed; to lose it, stop twice more")
        elif len(stops) > 2:
            raise KeyboardInterrupt

    handlers = {
        number: signal.signal(number, put_off)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stops:
        raise KeyboardInterrupt


class Progress:
    """One bar in tokens. Those of shards that are still text are estimated from their bytes.

    Attributes:
        n_examples: Labelled so far.
    """

    def __init__(self, language: str, n_bytes: int, *, max_tokens: int) -> None:
        """Begin.

        Args:
            language: Of the texts.
            n_bytes: Of all that are to be labelled.
            max_tokens: To which longer texts are cut.
        """
        self.n_examples = self._n_cut = 0
        self._language, self._max_tokens = language, max_tokens
        self._n_tokens = self._n_cells = 0
        self._bytes_left, self._bytes_counted, self._tokens_counted = n_bytes, 0, 0
        self._bar = Bar(desc=f"label '{language}'", unit="token", unit_scale=True)

    def begin(self, n_bytes: int, n_tokens: int, *, n_cut: int, n_done: int = 0) -> None:
        """Count the tokens of a shard.

        Args:
            n_bytes: Of all its texts.
            n_tokens: Of all its texts.
            n_cut: How many of its texts are longer than allowed.
            n_done: How many of these tokens somebody else has labelled in the meantime.
        """
        self._bytes_left -= n_bytes
        self._bytes_counted += n_bytes
        self._tokens_counted += n_tokens
        self._n_cut += n_cut
        per_byte = self._tokens_counted / max(self._bytes_counted, 1)
        self._bar.total = self._tokens_counted + round(self._bytes_left * per_byte)
        self._bar.update(n_done)

    def add(self, n_examples: int, n_tokens: int, n_cells: int) -> None:
        """Count what the teacher has answered: n_cells token cells, of which n_tokens were no padding."""
        self.n_examples += n_examples
        self._n_tokens += n_tokens
        self._n_cells += n_cells
        rate = self.n_examples / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{self.n_examples:,} examples, {rate:,.0f}/s, {1 - self._n_tokens / self._n_cells:.1%} padding",
            refresh=False,
        )
        self._bar.update(n_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._n_cut:
            say(
                f"{self._language}: {self._n_cut:,} of the texts to label are longer than "
                f"teacher.label.max_tokens, {self._max_tokens}, and were cut"
            )
