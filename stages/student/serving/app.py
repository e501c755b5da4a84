"""The server's addresses: /predict and what is beside it. Whatever is wrong with a request is said in one line."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, create_model
from starlette.exceptions import HTTPException

from stages.data.languages import language_id
from stages.student.serving.batcher import Batcher, QueueFullError
from stages.student.serving.metrics import Metrics
from stages.student.serving.model import Facts, ServedModel

_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body: Bytes of a request.
        characters: Of a text.
        texts: Examples of a request.
        waiting: Examples in the queue; each branch that a request asks about counts as another example.
    """

    body: int = 1_000_000
    characters: int = 20_000
    texts: int = 256
    waiting: int = 4096


class Refused(Exception):
    """A request that is not answered with predictions.

    Attributes:
        status: Of HTTP.
        line: What is wrong.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Asked(BaseModel):
    """What a client may ask; `_asked_of` makes the variant for a task's texts."""

    texts: list[Any]
    language: str | None = Field(None, description="Of all texts, such as de; none: the mixture.")
    languages: list[str | None] | None = Field(None, description="Of each text, in place of `language`.")
    branches: bool = Field(False, description="Whether to say what each branch makes of each text.")


class Prediction(BaseModel):
    """What the student says of an example."""

    label: str
    probabilities: dict[str, float]
    branch: str = Field(description="The language whose branch answered, or mixture.")
    branches: dict[str, dict[str, float]] | None = Field(None, description="Probabilities by branch.")


class Answer(BaseModel):
    """Predictions in the order of the texts."""

    predictions: list[Prediction]


class Problem(BaseModel):
    """What is wrong with a request."""

    error: str


def make_app(model: ServedModel, limits: Limits) -> FastAPI:
    """Make the application; ``app.state.metrics`` counts what it answered once it runs."""
    service = _Service(model, limits)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.metrics = metrics = Metrics(lambda: len(service.batcher))
        service.batcher = Batcher(model, most_waiting=limits.waiting, observe=metrics.count_batch)
        service.metrics = metrics
        yield
        await service.batcher.close()

    app = FastAPI(title="MBLM student", lifespan=running, redirect_slashes=False)
    app.add_middleware(_Counted, service=service)  # type: ignore[arg-type]
    problems: dict[int | str, Any] = {code: {"model": Problem} for code in (400, 413, 422, 503)}
    body = {"required": True, "content": {"application/json": {"schema": service.asked.model_json_schema()}}}
    app.post("/predict", response_model=Answer, responses=problems, openapi_extra={"requestBody": body})(
        service.predict
    )
    app.get("/healthz", summary="Whether the server runs")(service.healthz)
    app.get("/metrics", summary="Counters, for Prometheus", response_class=Response)(service.show_metrics)
    app.get("/", summary="A page to try texts on", response_class=HTMLResponse)(service.page)
    app.add_exception_handler(Refused, _say_refused)
    app.add_exception_handler(HTTPException, _say_http)
    app.add_exception_handler(Exception, _say_broken)
    return app
