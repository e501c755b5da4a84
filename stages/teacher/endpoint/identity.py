"""Who a teacher behind HTTP is: what it is asked, and what it says that it is; no address and no key."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache import CacheError, Producer, Store
from cache.store import producer_ids
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.progress import say
from stages.teacher.endpoint import chat_logprobs, classify, decision
from stages.teacher.endpoint.transport import Transport
from stages.teacher.endpoint.wording import Answer, AnswerError, Shape, Wording
from stages.teacher.params import EndpointParams, OneTeacher
from stages.teacher.pin import endpoint_pin, read_pin

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts without content, of which a teacher without bias would say nothing (Zhao et al., 2021)."""

_SHAPES: dict[str, Shape] = {"chat-logprobs": chat_logprobs, "classify": classify, "decision": decision}
_READING = {
    "chat-logprobs": chat_logprobs.READING,
    "classify": classify.READING,
    "decision": decision.READING,
}
_OF_ID = ("model", "model_id", "model_sha")
"""What of a server's words about itself is a fact of the producer; its other words are compared."""


@dataclass(frozen=True)
class Endpoint:
    """A teacher behind HTTP that is known.

    Attributes:
        wording: How it is asked.
        producer: Who it is.
    """

    wording: Wording
    producer: Producer

    @property
    def shape(self) -> Shape:
        """What makes requests and reads answers."""
        return _SHAPES[self.wording.how.shape]

    @property
    def answered(self) -> dict[str, str]:
        """The model whose soft labels these are, as far as the server says it."""
        return dict((self.producer.endpoint or {}).get("answered", {}))

    async def ask(self, transport: Transport, texts: Sequence[str]) -> Answer:
        """Ask about one text, or one pair.

        Raises:
            AnswerError: There is no answer that says anything.
            StageError: The server would refuse any request, or is another model by now.
        """
        path, body = self.shape.path(self.wording.how), self.shape.body(self.wording, texts)
        answer = await transport.post(path, body)
        try:
            read = read_answer(self.shape, self.wording, answer)
        except AnswerError as error:
            raise AnswerError(transport.without_key(str(error))) from error
        self._require_same(read.reported)
        return read

    @property
    def is_asked_who_it_is(self) -> bool:
        """Whether the server has a place, beside its answers, where it says which model it runs."""
        return self.wording.how.dialect == "tei"

    async def reported_by(self, transport: Transport) -> dict[str, str]:
        """Give what a server says of itself beside its answers; only TEI has a place for it.

        Raises:
            StageError: It is another model than the one whose soft labels these are, or does not say so.
        """
        if not self.is_asked_who_it_is:
            return {}
        said: dict[str, str] = {}
        reason = "it names no model_sha"
        try:
            said = await classify.info(transport)
        except AnswerError as error:
            reason = str(error)
        if not self.answered.keys() <= said.keys():
            raise StageError(
                f"{self.wording.how.url}/info does not say which model answers now ({reason}), and the soft "
                f"labels in the store are those of {', '.join(self.answered.values())}; see to the server"
            )
        self._require_same(said)
        return said

    def _require_same(self, said: dict[str, str]) -> None:
        """Refuse the answer of another model than the one whose soft labels these are."""
        for key, known in self.answered.items():
            if said.get(key, known) != known:
                raise StageError(
                    f"{self.wording.how.url} answers as {key} {said[key]}, and the soft labels in the store "
                    f"are those of {known}; if that is right, give the teacher another revision"
                )


async def identify(
    task: TaskParams, teacher: OneTeacher, root: str, place: Path, *, language: str
) -> Endpoint:
    """Find out who a teacher is: as the store knows it, or, if it knows none or several, by asking it.

    Args:
        task: Section `task` of params.yaml.
        teacher: One with an endpoint.
        root: The store.
        place: Where `pin_soft_labels` wrote.
        language: Of the texts, for messages.

    Raises:
        StageError: The template is not the one that was pinned or lacks a placeholder, or the server cannot
            be asked.
    """
    how = teacher.endpoint
    assert how is not None
    if read_pin(place) != endpoint_pin(teacher, key=f"teachers.{language}"):
        raise StageError(
            f"the endpoint of teachers.{language}, its revision or its template is not what was pinned; "
            f"pin it again with: python -m pipeline teacher finetune --language {language}"
        )
    wording = _wording(task, teacher, language)
    asked = _asked(wording, teacher.revision)
    known = _known(root, asked, task.text_fields)
    if teacher.revision is None:
        known = await _of_version(how, known, language)
    if len(known) == 1:
        return Endpoint(replace(wording, classes=known[0].classes), known[0])
    transport = Transport(how)
    try:
        async with transport:
            said = await _first_reported(transport, wording)
            answer = await transport.post(
                _SHAPES[how.shape].path(how),
                _SHAPES[how.shape].body(wording, [CONTENT_FREE[0]] * len(task.text_fields)),
            )
        if not wording.classes:
            wording = replace(wording, classes=classify.classes(answer))
        said |= read_answer(_SHAPES[how.shape], wording, answer).reported
    except AnswerError as error:
        reason = transport.without_key(str(error))
        raise StageError(f"the teacher for '{language}' gave no answer: {reason}") from error
    if teacher.revision is None and "model_sha" not in said:
        raise StageError(
            f"{how.url}/info names no model_sha; say which version of the model answers: "
            f"teachers.{language}.revision"
        )
    answered = {key: said[key] for key in _OF_ID if key in said}
    facts = {**asked, "answered": answered}
    producer = Producer.of_endpoint(facts, classes=wording.classes, text_fields=task.text_fields)
    return Endpoint(wording, producer)


def read_answer(shape: Shape, wording: Wording, answer: Any) -> Answer:
    """Read an answer, whatever a server sent.

    Raises:
        AnswerError: There is no answer that says anything.
    """
    refusal = answer.get("error") if isinstance(answer, Mapping) else None
    if refusal:  # as some servers have it with the status 200
        reason = refusal.get("message") if isinstance(refusal, Mapping) else None
        raise AnswerError(
            f"the server answered with an error: {' '.join(str(reason or refusal).split())[:200]!r}"
        )
    try:
        return shape.read(wording, answer)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise AnswerError(f"the answer is not laid out as {wording.how.shape} has it ({error!r})") from error


async def _of_version(how: EndpointParams, known: list[Producer], language: str) -> list[Producer]:
    """Leave those that are the version that answers now, which stands in a revision's place.

    Where the server is away, the only one that is known is taken.
    """
    if not known:
        return []
    try:
        async with Transport(how) as transport:
            said = await classify.info(transport)
    except AnswerError as error:
        if len(known) == 1:
            its = ", ".join((known[0].endpoint or {}).get("answered", {}).values())
            say(f"{language}: {error}; these are the soft labels of {its}")
        return known
    version = {key: said[key] for key in _OF_ID if key in said}
    return [one for one in known if (one.endpoint or {}).get("answered") == version]


async def _first_reported(transport: Transport, wording: Wording) -> dict[str, str]:
    """Give what a server says of itself where the store does not know it: nothing, if need be."""
    if wording.how.dialect == "tei":
        with suppress(AnswerError):
            return await classify.info(transport)
    return {}


def _asked(wording: Wording, revision: str | None) -> dict[str, Any]:
    """Give what decides an answer of a teacher, as far as it is known here."""
    how = wording.how
    is_chat = how.shape == "chat-logprobs"
    facts = {
        "shape": how.shape,
        "dialect": how.dialect,
        "model": how.model,
        "revision": revision,
        "template": wording.template,
        "classes": list(wording.classes) or None,
        "letters": chat_logprobs.LETTERS[: len(wording.classes)] if is_chat else None,
        "descriptions": how.descriptions or None,
        "request": _SHAPES[how.shape].fixed(how),
        "reading": _READING[how.shape],
    }
    return {key: value for key, value in facts.items() if value is not None}


def _known(root: str, asked: dict[str, Any], text_fields: Sequence[str]) -> list[Producer]:
    """Give the producers of a store that were asked like this."""
    found = []
    for one in producer_ids(root):
        with suppress(CacheError):
            producer = Store.open(root, one).producer
            endpoint = dict(producer.endpoint or {})
            endpoint.pop("answered", None)
            if endpoint == asked and producer.facts["text_fields"] == list(text_fields):
                found.append(producer)
    return found


def _wording(task: TaskParams, teacher: OneTeacher, language: str) -> Wording:
    """Say how a teacher is asked.

    Raises:
        StageError: The template has not the placeholders that the shape wants.
    """
    how = teacher.endpoint
    assert how is not None
    told = {name: label for label, name in (teacher.labels or {}).items()}
    classes = (
        list(how.classes or []) if how.shape == "classify" else [told.get(one, one) for one in task.classes]
    )
    unknown = sorted(set(how.descriptions) - set(classes))
    if unknown:
        raise StageError(
            f"teachers.{language}.endpoint.descriptions: there is no class {unknown[0]}; there are: "
            f"{', '.join(classes)}"
        )
    template = None
    if how.template is not None:
        try:
            template = Path(how.template).read_text(encoding="utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            raise StageError(
                f"{how.template} is not UTF-8 ({error.reason}); convert it with iconv"
            ) from error
        _require_placeholders(template, task.text_fields, how.shape, file=how.template)
    return Wording(how, classes, template, task.text_fields)


def _require_placeholders(template: str, text_fields: Sequence[str], shape: str, *, file: str) -> None:
    names = [f"{{{name}}}" for name in (*text_fields, "classes")]
    if shape == "chat-logprobs":
        for name in names:
            if name not in template:
                raise StageError(f"{file} has no placeholder {name}; it needs {' and '.join(names)}")
    else:
        for name in names:
            if name in template:
                raise StageError(f"{file} has {name}, which the shape {shape} sends beside it; take it out")
