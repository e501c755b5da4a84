"""Ask a teacher behind HTTP what the store lacks: many requests at once, each answer kept as it comes."""

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from cache import EndpointNotes, Lookup, Store, write_atomically
from cache.soft_labels import id_bytes
from stages.artifacts import ARTIFACTS
from stages.errors import StageError
from stages.progress import Bar, say
from stages.teacher.endpoint.event_loop import run
from stages.teacher.endpoint.identity import CONTENT_FREE, Endpoint
from stages.teacher.endpoint.kept import ENOUGH, JOURNALS, Kept, require_sense
from stages.teacher.endpoint.letter_bias import letter_bias
from stages.teacher.endpoint.transport import Transport, foreign_host
from stages.teacher.endpoint.wording import Answer, AnswerError
from stages.teacher.labelling.examples import Examples
from stages.teacher.labelling.loop import told

AGAIN = 8
"""Stored texts that are asked about again before anything else is asked."""

_BLOCK = 512
"""Texts that are read from disk at once, before which the store is looked at."""
_IN_A_ROW = 50
"""Texts without an answer, one after the other, after which the run ends."""


@dataclass
class Tally:
    """What a run has asked and what came of it.

    Attributes:
        answered: Texts with an answer.
        failed: Texts without one.
        tokens: That the server counted.
        seconds: That it took.
        reasons: Why each text without an answer has none.
        in_a_row: Texts without an answer since the last one with one.
    """

    answered: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)
    in_a_row: int = 0
    _since: float = field(default_factory=time.monotonic)

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self.answered += 1
        self.tokens += answer.tokens
        self.in_a_row = 0
        self.seconds = time.monotonic() - self._since

    def fail(self, text: str, error: AnswerError) -> None:
        """Count a text without an answer."""
        self.failed += 1
        self.in_a_row += 1
        self.reasons[text] = str(error)

    @property
    def first(self) -> str:
        """Say what the first text without an answer is, and why it has none."""
        text, reason = next(iter(self.reasons.items()))
        return f"{text[:40]!r}: {reason}"

    def line(self) -> str:
        """Say how it goes, in a part of a line."""
        share = self.failed / max(self.answered + self.failed, 1)
        rate = self.answered / max(self.seconds, 1e-9)
        return f"{rate:,.1f} answers/s, {share:.1%} failed, {self.tokens:,} tokens"


def fill_by_asking(
    endpoint: Endpoint,
    store: Store,
    examples: Examples,
    whole: Examples,
    *,
    format_: str,
    accept_change: bool,
) -> tuple[Lookup, Tally]:
    """Let a store have the soft labels of all examples: the teacher is asked for those that it lacks.

    Args:
        endpoint: The teacher.
        store: Of its producer.
        examples: N of them.
        whole: All of the language; a few of those that the store has are asked about again.
        format_: Of the shards.
        accept_change: Whether it is right that the server is another one than before, or answers otherwise.

    Raises:
        StageError: The server changed, a text got no answer, too many letters are missing, or too much
            probability is outside the classes. The answers that came are in the store.
        CacheError: The store cannot be used.
    """
    lookup = store.look_up(examples.ids, overflow=ARTIFACTS)
    Kept(endpoint, store, lookup, format_).take_left_behind()
    tally = Tally()
    with told(store, lookup, examples):
        notes = EndpointNotes.read(store.folder)
        wants_bias = endpoint.wording.how.letter_bias is not None and notes.letter_bias is None
        require_sense(endpoint, notes, at_least=ENOUGH)
        if wants_bias or not lookup.found.all():
            _say_where_texts_go(endpoint, examples.language)
            run(_ask(endpoint, store, lookup, examples, whole, tally, format_, accept_change))
        require_sense(endpoint, EndpointNotes.read(store.folder), at_least=1)
        path = _note_no_answers(examples, tally)
        if tally.failed:
            n = tally.failed + tally.answered
            raise StageError(
                f"{tally.failed:,} of {n:,} texts of '{examples.language}' got no answer, first "
                f"{tally.first}; the others are stored, and the same command asks for the rest; {path} lists "
                "those without an answer: take out of the data what fails each time"
            )
    return lookup, tally


def _note_no_answers(examples: Examples, tally: Tally) -> Path:
    """Write which texts of a language have no answer, and why: those of this run, and of other parts.

    Returns:
        The file; it is not there where all have one.
    """
    path = JOURNALS / f"no-answer-{examples.language}.jsonl"
    reasons: dict[str, str] = {}
    with suppress(FileNotFoundError):
        lines = path.read_bytes().decode(errors="surrogatepass").split("\n")[:-1]  # texts may have other ends
        fields = examples.texts(np.arange(len(examples.ids)))
        asked = set(map(_as_one, zip(*fields, strict=True)))
        reasons = {text: why for text, why in map(json.loads, lines) if text not in asked}
    reasons |= tally.reasons
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in reasons.items()]
    if lines:
        write_atomically(path, "".join(lines).encode(errors="surrogatepass"))
    else:
        path.unlink(missing_ok=True)
    return path


def _as_one(texts: Sequence[str]) -> str:
    """Write the texts of an example, one or two, in one line."""
    return " | ".join(texts)


def _say_where_texts_go(endpoint: Endpoint, language: str) -> None:
    host = foreign_host(endpoint.wording.how)
    if host is not None:
        say(f"{language}: texts leave this machine: they are sent to {host}, whose terms apply")


async def _ask(
    endpoint: Endpoint,
    store: Store,
    lookup: Lookup,
    examples: Examples,
    whole: Examples,
    tally: Tally,
    format_: str,
    accept_change: bool,
) -> None:
    """Ask about all that is missing, behind what was asked before and what estimates the bias."""
    how = endpoint.wording.how
    store.create()
    async with Transport(how) as transport:
        kept = Kept(endpoint, store, lookup, format_, accept_change=accept_change)
        kept.require_known(await endpoint.reported_by(transport))
        await _ask_again(endpoint, transport, kept, store.look_up(whole.ids, overflow=ARTIFACTS), whole)
        if how.letter_bias is not None and kept.notes.letter_bias is None:
            await _estimate_bias(endpoint, transport, kept)
        n_missing = int(np.count_nonzero(~lookup.found))
        if not n_missing:
            return
        questions = _questions(store, lookup, examples)
        with kept, Bar(desc=f"ask '{examples.language}'", unit="text", total=n_missing) as bar:

            async def work() -> None:
                for position, texts in questions:
                    try:
                        answer = await endpoint.ask(transport, texts)
                    except AnswerError as error:
                        tally.fail(_as_one(texts), error)
                        if tally.in_a_row >= _IN_A_ROW and tally.in_a_row >= how.concurrency:
                            raise StageError(
                                f"{tally.in_a_row} texts in a row got no answer, first {tally.first}"
                            ) from error
                    else:
                        kept.keep(position, answer)
                        tally.count(answer)
                        await kept.write_if_due(transport)
                    bar.set_postfix_str(tally.line(), refresh=False)
                    bar.update()

            await _together([work() for _ in range(min(how.concurrency, n_missing))])
            await kept.write_checked(transport)
    say(f"{examples.language}: {tally.answered:,} answers in {tally.seconds:,.1f} s: {tally.line()}")


async def _together(work: list[Any]) -> None:
    """Run coroutines until all are done, or one fails; then the others are stopped, and it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _questions(store: Store, lookup: Lookup, examples: Examples) -> Iterator[tuple[int, list[str]]]:
    """Give what is missing, with the texts, block by block in random order, each when somebody is free.

    Before each block the store is looked at: users who ask at once go different ways, and one leaves out what
    another has finished.
    """
    misses = np.flatnonzero(~lookup.found)
    blocks = np.array_split(misses, -(-len(misses) // _BLOCK))
    while blocks:
        block = blocks.pop(secrets.randbelow(len(blocks)))
        store.update(lookup)
        block = block[~lookup.found[block]]
        if len(block):
            fields = examples.texts(block)
            yield from zip(block.tolist(), map(list, zip(*fields, strict=True)), strict=True)


async def _answers(endpoint: Endpoint, transport: Transport, texts: Sequence[Sequence[str]]) -> list[Answer]:
    """Ask about a few texts."""
    free = asyncio.Semaphore(endpoint.wording.how.concurrency)

    async def one(text: Sequence[str]) -> Answer:
        async with free:
            return await endpoint.ask(transport, text)

    return list(await asyncio.gather(*map(one, texts)))


async def _ask_again(
    endpoint: Endpoint, transport: Transport, kept: Kept, lookup: Lookup, examples: Examples
) -> None:
    """Compare what a teacher says now of some texts with what the store has.

    Raises:
        StageError: It differs, or the server is another one, and nobody agreed to that.
    """
    ids = id_bytes(lookup.ids)
    found = np.flatnonzero(lookup.found)
    order = np.lexsort(ids[found].T[::-1])[:AGAIN]
    some = np.sort(found[order])
    if not len(some):
        return
    fields = examples.texts(some)
    texts = [list(one) for one in zip(*fields, strict=True)]
    try:
        answers = await _answers(endpoint, transport, texts)
    except AnswerError as error:
        raise StageError(
            f"asked again, the teacher for '{examples.language}' gave no answer: {error}"
        ) from error
    for answer in answers:
        kept.require_known(answer.reported)
    now = softmax(np.array([answer.logits for answer in answers]), axis=1)
    mask = np.zeros(len(ids), bool)
    mask[some] = True
    before = softmax(lookup.some(mask).logits.astype(np.float64), axis=1)
    names = [ids[position].tobytes().hex() for position in some]
    for row, name in enumerate(names):
        before[row] = kept.notes.accepted.get(name, before[row])
    most = float(np.abs(now - before).max())
    how = endpoint.wording.how
    if most <= how.tolerance:
        return
    if kept.accept_change:
        kept.accept(dict(zip(names, now.tolist(), strict=True)))
    else:
        worst = texts[int(np.abs(now - before).max(axis=1).argmax())][0][:40]
        raise StageError(
            f"the teacher for '{examples.language}' answers otherwise than before: asked again about "
            f"{len(some)} texts, a probability differs by up to {most:.2g} ({worst!r}), more than "
            f"endpoint.tolerance, {how.tolerance:g}; give it another revision, or go on with: --accept-change"
        )


async def _estimate_bias(endpoint: Endpoint, transport: Transport, kept: Kept) -> None:
    """Ask about texts without content, and let the store know what to take off the answers."""
    n_fields = len(endpoint.wording.text_fields)
    try:
        answers = await _answers(endpoint, transport, [[text] * n_fields for text in CONTENT_FREE])
    except AnswerError as error:
        raise StageError(f"no answer about a text without content, for letter_bias: {error}") from error
    bias = letter_bias([answer.logits for answer in answers])
    notes = EndpointNotes.read(kept.store.folder)  # another run may have estimated it meanwhile
    kept.notes = replace(notes, letter_bias=bias if notes.letter_bias is None else notes.letter_bias)
    kept.notes.write(kept.store.folder)
