"""What becomes of an endpoint's answers: a line in the journal at once, a shard of the store before long."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logsumexp

from cache import ID_TYPE, EndpointNotes, Lookup, SoftLabels, Store, canonical_json
from stages.artifacts import ARTIFACTS
from stages.errors import StageError
from stages.teacher.endpoint import classify
from stages.teacher.endpoint.identity import Endpoint
from stages.teacher.endpoint.journal import Journal, Line, left_behind
from stages.teacher.endpoint.transport import Transport
from stages.teacher.endpoint.wording import Answer

JOURNALS = ARTIFACTS / "asked"
_SHARD, _SHARD_SECONDS = 1024, 30.0
"""Answers that become a shard, at most; and after how long there is one of fewer, for others to see."""
ENOUGH = 50
"""Answers whose shares of missing letters and of probability outside the classes mean something."""


class Kept:
    """The answers of a run."""

    def __init__(
        self, endpoint: Endpoint, store: Store, lookup: Lookup, format_: str, *, accept_change: bool = False
    ) -> None:
        self.store, self.accept_change = store, accept_change
        self.notes = EndpointNotes.read(store.folder)
        self._endpoint, self._lookup, self._format = endpoint, lookup, format_
        self._journal: Journal | None = None
        self._writing = asyncio.Lock()
        self._lines: list[Line] = []
        self._n_kept = 0
        self._has_looked = self._is_over = False
        self._lately = EndpointNotes()
        self._since = time.monotonic()

    def take_left_behind(self) -> None:
        """Let the store have the answers of runs that were killed, but for those of a server to be asked."""
        for lines in left_behind(JOURNALS, self.store.producer.id):
            if self._endpoint.is_asked_who_it_is:  # nobody knows whether it was the same model to the end
                continue
            ids = pa.array([bytes.fromhex(line.id) for line in lines], ID_TYPE)
            there = self.store.look_up(ids).found  # it may have been killed after the shard was written
            self._lines = [line for line, is_there in zip(lines, there, strict=True) if not is_there]
            with suppress(StageError):  # answers that would be refused now are not taken
                self.write()
            self._is_over = False

    def require_known(self, said: dict[str, str]) -> None:
        """Refuse a server that is another one than before, unless somebody agreed.

        Raises:
            StageError: It is.
        """
        if not said or said in self.notes.answered_as:
            return
        same_kind = [one for one in self.notes.answered_as if set(one) == set(said)]
        if same_kind and not self.accept_change:
            last = same_kind[-1]
            differs = [key for key in sorted(said) if said[key] != last[key]]
            before, now = (", ".join(f"{key} {one[key]}" for key in differs) for one in (last, said))
            raise StageError(
                f"the server is another one than before: it was {before}, and is {now}; give the teacher "
                "another revision, or go on with: --accept-change"
            )
        notes = EndpointNotes.read(self.store.folder)  # others may have written meanwhile
        known = notes.answered_as if said in notes.answered_as else (*notes.answered_as, said)
        self.notes = replace(notes, answered_as=known)
        self.notes.write(self.store.folder)

    def accept(self, probabilities: dict[str, list[float]]) -> None:
        """Compare with other answers from now on than the store's, by the example's id."""
        notes = EndpointNotes.read(self.store.folder)
        more = {name: tuple(one) for name, one in probabilities.items()}
        self.notes = replace(notes, accepted={**notes.accepted, **more})
        self.notes.write(self.store.folder)

    def keep(self, position: int, answer: Answer) -> None:
        """Keep an answer about the example at a position of the look-up.

        Raises:
            StageError: The server is another one by now.
        """
        self.require_known(answer.reported)
        assert self._journal is not None
        line = Line(self._lookup.ids[position].as_py().hex(), answer.logits, answer.missing)
        self._journal.add(line)
        self._lines.append(line)
        self._n_kept += 1

    async def write_if_due(self, transport: Transport) -> None:
        """Let the store have what was kept if it is time.

        Raises:
            StageError: See `write_checked`.
        """
        if self._is_due:
            async with self._writing:
                if self._is_due:  # no other worker has seen to it
                    await self.write_checked(transport)

    async def write_checked(self, transport: Transport) -> None:
        """Let the store have what was kept if it is still the same model that answers.

        Raises:
            StageError: It is another one, or its answers make little sense.
        """
        with self._forgotten_on_error():
            self.require_known(await self._endpoint.reported_by(transport))
        self.write()
        require_sense(self._endpoint, self.notes, at_least=ENOUGH)

    @property
    def _is_due(self) -> bool:
        is_first_look = not self._has_looked and self._n_kept >= ENOUGH  # before many are paid for in vain
        is_late = time.monotonic() - self._since > _SHARD_SECONDS
        return is_first_look or len(self._lines) >= _SHARD or is_late

    @contextmanager
    def _forgotten_on_error(self) -> Iterator[None]:
        """Forget the answers since the last shard where something shows that they are another model's."""
        try:
            yield
        except StageError:
            self._is_over = True
            self._forget()
            raise

    def write(self) -> None:
        """Let the store have what was kept.

        Raises:
            StageError: The answers since the last shard make no sense; they are forgotten.
        """
        self._since = time.monotonic()
        self._has_looked = self._n_kept >= ENOUGH
        lines = self._lines
        if not lines or self._is_over:
            self._forget()  # also what other workers still got from a server that is refused
            return
        ids = pa.array([bytes.fromhex(line.id) for line in lines], ID_TYPE)
        logits = np.array([line.logits for line in lines], np.float32)
        with self._forgotten_on_error():
            self._require_good(lines, logits)
        made_with = canonical_json({"openai": version("openai")}).decode()
        soft_labels = replace(SoftLabels.pack(ids, logits), made_with=(made_with,))
        self._lookup.seen.add(self.store.append(soft_labels, format_=self._format))
        self._lookup.fill(soft_labels)
        notes = EndpointNotes.read(self.store.folder)  # others may have counted meanwhile
        self.notes = self._counted(notes, lines, logits)
        self.notes.write(self.store.folder)
        self._forget()  # not before the store has them

    def _forget(self) -> None:
        self._lines = []
        if self._journal is not None:
            self._journal.clear()

    def _require_good(self, lines: list[Line], logits: NDArray[np.float32]) -> None:
        """Refuse what a server sends by mistake, and the answers of one that was good and is no more."""
        how = self._endpoint.wording.how
        if how.shape == "classify" and classify.are_probabilities(logits):
            raise StageError(
                f"{how.url} sends probabilities, not raw logits: {len(lines):,} answers have only numbers "
                "from 0 to 1; update the server, or give an older vLLM extra: {activation: false}"
            )
        self._lately = self._counted(self._lately, lines, logits)
        if self._lately.answers >= ENOUGH:
            if self.notes.answers >= ENOUGH:  # else the first look tells
                require_sense(self._endpoint, self._lately, at_least=ENOUGH, which="last ")
            self._lately = EndpointNotes()

    def _counted(self, notes: EndpointNotes, lines: list[Line], logits: NDArray[np.float32]) -> EndpointNotes:
        """Count how well the teacher answered, behind what was counted before."""
        notes = replace(notes, answers=notes.answers + len(lines))
        if self._endpoint.wording.how.shape != "chat-logprobs":
            return notes
        outside = np.maximum(1 - np.exp(logsumexp(logits.astype(np.float64), axis=1)), 0).sum()
        return replace(
            notes,
            letters=notes.letters + logits.size,
            missing=notes.missing + sum(line.missing for line in lines),
            outside=notes.outside + float(outside),
        )

    def __enter__(self) -> None:
        self._journal = Journal(JOURNALS, self.store.producer.id)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._journal is not None
        with self._journal:
            self._is_over |= kind is not None and self._endpoint.is_asked_who_it_is  # and was not, at the end
            self.write()  # whatever ends the run


def require_sense(endpoint: Endpoint, notes: EndpointNotes, *, at_least: int, which: str = "") -> None:
    """Stop where a teacher's answers say too little about the classes.

    Args:
        endpoint: The teacher.
        notes: How well it has answered.
        at_least: Answers that tell.
        which: Which answers these are, for messages: ``last ``, or all.

    Raises:
        StageError: Too many letters are missing, or too much probability is outside the classes.
    """
    how = endpoint.wording.how
    if notes.answers < at_least or not notes.letters:
        return
    if notes.missing / notes.letters > how.max_missing:
        raise StageError(
            f"{notes.missing / notes.letters:.1%} of the letters are missing in the {which}{notes.answers:,} "
            f"answers, more than endpoint.max_missing, {how.max_missing:g}; ask for more top_logprobs, or "
            "for the letters themselves with vLLM's extra: {logprob_token_ids: …}"
        )
    if notes.outside / notes.answers > how.max_outside:
        raise StageError(
            f"the {which}{notes.answers:,} answers give {notes.outside / notes.answers:.1%} of their "
            f"probability to no letter, more than endpoint.max_outside, {how.max_outside:g}; let the "
            "template ask for one letter and nothing else, and turn thinking off"
        )
