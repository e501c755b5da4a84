"""The server's addresses: /predict and those beside it. What is wrong with a request, one line says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stages.data.branches import MIXTURE
from stages.data.languages import language_id
from stages.student.serving.batcher import Batcher, QueueFullError
from stages.student.serving.metrics import Metrics
from stages.student.serving.model import Example, ServedModel

_PAGE = Path(__file__).with_name("page.html")
_RETRY_AFTER = "1"
"""Seconds after which a client that found the queue full may ask again."""


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body: Bytes of a request.
        characters: Of a text.
        texts: Examples of a request.
        waiting: Examples in the queue. Where a request asks for branches, each adds one per example.
    """

    body: int = 1_000_000
    characters: int = 20_000
    texts: int = 256
    waiting: int = 2048


Tag = Annotated[str, Field(max_length=100)]
"""Of a language."""


class Asked(BaseModel):
    """What /predict takes."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Any]
    language: Tag | None = Field(None, description="Of all texts, such as de; none stands for the mixture.")
    languages: list[Tag | None] | None = Field(None, description="Of each text, in place of language.")
    branches: bool = Field(False, description="Whether to tell what each branch says of each text.")


class Prediction(BaseModel):
    """What the student says of an example."""

    label: str
    probabilities: dict[str, float]
    branch: str = Field(description="The language whose branch answered, or mixture.")
    branches: dict[str, dict[str, float]] | None = Field(None, description="Probabilities by branch.")


class Answer(BaseModel):
    """What /predict gives, in the order of the texts."""

    predictions: list[Prediction]


class Problem(BaseModel):
    """What is given in place of an answer."""

    error: str


class RefusedError(Exception):
    """A request that gets no predictions.

    Attributes:
        status: Of HTTP.
        line: What is wrong.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Service:
    """A model behind the addresses of a server.

    Attributes:
        metrics: What was answered.
    """

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._asked = _asked_of(len(model.facts.text_fields), limits)
        self._languages = list(model.facts.languages)
        self._batcher: Batcher | None = None
        self.metrics = Metrics(lambda: 0 if self._batcher is None else len(self._batcher))

    def app(self) -> FastAPI:
        """Make the application."""
        app = FastAPI(title="MBLM student", lifespan=self._running, redirect_slashes=False)
        app.add_middleware(self.metrics.around)
        problems: dict[int | str, Any] = {code: {"model": Problem} for code in (400, 413, 422, 500, 503)}
        schema = self._asked.model_json_schema()
        body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        app.post("/predict", response_model=Answer, responses=problems, openapi_extra=body)(self.predict)
        app.get("/healthz", summary="Whether the server runs")(self.health)
        app.get("/metrics", summary="Counters, for Prometheus")(self.counters)
        app.get("/", summary="A page to try texts on", response_class=HTMLResponse)(self.page)
        app.add_exception_handler(RefusedError, _say_refused)
        app.add_exception_handler(HTTPException, _say_http)
        app.add_exception_handler(Exception, _say_broken)
        return app

    @asynccontextmanager
    async def _running(self, _: FastAPI) -> AsyncIterator[None]:
        self._batcher = Batcher(
            self._model, most_waiting=self._limits.waiting, observe=self.metrics.count_batch
        )
        yield
        await self._batcher.close()

    async def predict(self, request: Request) -> Response:
        """Classify texts, or pairs of texts."""
        asked = self._read(await self._body(request))
        # The first name of a language in place of a tag takes seconds to look up.
        ids = await asyncio.to_thread(self._language_ids, asked)
        facts = self._model.facts
        branches = range(facts.n_branches) if asked.branches and facts.n_branches > 1 else range(0)
        examples: list[Example] = asked.texts * (1 + len(branches))
        if len(examples) > self._limits.waiting:
            most = self._limits.waiting // (1 + len(branches))
            raise RefusedError(422, f"texts: at most {most} where branches are asked for")
        wanted = [*ids, *(branch for branch in branches for _ in ids)]
        assert self._batcher is not None
        try:
            found = await self._batcher.classify(examples, wanted)
        except QueueFullError:
            raise RefusedError(503, "too many texts are waiting; try again in a second") from None
        except asyncio.CancelledError:
            raise RefusedError(503, "the server stops before it could answer; ask again") from None
        if np.isnan(found).any():
            broken = int(np.flatnonzero(np.isnan(found).any(axis=1))[0]) % len(ids)
            raise RefusedError(500, f"texts[{broken}]: the student gives NaN; train it again, and export it")
        used = [facts.branch(one) for one in ids]
        self.metrics.count_examples(used)
        rows = [self._by_class(row) for row in found.tolist()]
        predictions: list[dict[str, Any]] = [
            {"label": max(row, key=row.__getitem__), "probabilities": row, "branch": branch}
            for row, branch in zip(rows, used, strict=False)
        ]
        if branches:
            for index, prediction in enumerate(predictions):
                prediction["branches"] = dict(
                    zip(self._languages, rows[index + len(ids) :: len(ids)], strict=True)
                )
        text = json.dumps({"predictions": predictions}, ensure_ascii=False)
        return Response(text, media_type="application/json")

    async def health(self) -> dict[str, str]:
        """Say that the server runs."""
        return {"status": "ok"}

    async def counters(self) -> Response:
        """Give the counters as Prometheus reads them."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        """Give a page on which a person tries texts."""
        facts = self._model.facts
        shown = {
            "textFields": facts.text_fields,
            "languages": self._languages,
            "mixture": MIXTURE,
            "characters": self._limits.characters,
        }
        text = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")  # no end of the script
        return HTMLResponse(_PAGE.read_text(encoding="utf-8").replace("{{facts}}", text))

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._limits.body:
                    raise RefusedError(413, f"the request is longer than {self._limits.body:,} bytes")
        except ClientDisconnect:
            raise RefusedError(400, "the request ends before its body does") from None
        return bytes(body)

    def _read(self, body: bytes) -> Any:
        try:
            body.decode()
            return self._asked.model_validate_json(body)
        except UnicodeDecodeError as error:
            raise RefusedError(400, f"the request is no UTF-8, from byte {error.start:,} on") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            status = 400 if first["type"] == "json_invalid" else 422
            place = ".".join(map(str, first["loc"]))[:100] or "request"
            raise RefusedError(status, f"{place}: {first['msg']}") from None

    def _language_ids(self, asked: Any) -> list[int]:
        """Find the branches of the texts' languages."""
        if asked.languages is not None and asked.language is not None:
            raise RefusedError(422, "give language or languages, not both")
        if asked.languages is not None and len(asked.languages) != len(asked.texts):
            raise RefusedError(
                422, f"languages: there are {len(asked.languages)} of {len(asked.texts)} texts"
            )
        names = asked.languages or [asked.language] * len(asked.texts)
        try:
            found = {name: language_id(name or "", self._languages) for name in dict.fromkeys(names)}
        except ValueError as error:
            raise RefusedError(422, f"language: {error}") from None
        return [found[name] for name in names]

    def _by_class(self, row: list[float]) -> dict[str, float]:
        return {name: round(value, 6) for name, value in zip(self._model.facts.classes, row, strict=True)}


def _asked_of(n_fields: int, limits: Limits) -> type[BaseModel]:
    """Make the variant of `Asked` for a task of single texts or of pairs."""
    text = Annotated[str, Field(min_length=1, max_length=limits.characters)]
    example: Any = text if n_fields == 1 else tuple[text, text]
    texts: Any = Annotated[list[example], Field(min_length=1, max_length=limits.texts)]
    return create_model("Asked", __base__=Asked, texts=(texts, ...))


async def _say_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"Retry-After": _RETRY_AFTER} if error.status == 503 else {}
    return JSONResponse({"error": error.line}, error.status, headers)


async def _say_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": line}, error.status_code, error.headers)


async def _say_broken(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
