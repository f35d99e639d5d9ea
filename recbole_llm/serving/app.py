"""The HTTP interface: `POST /recommend`, `GET /health` and `GET /metrics`."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from recbole_llm.errors import DataError, RecBoleLLMError, SettingError
from recbole_llm.inference.recommender import Recommendation
from recbole_llm.serving.batcher import Batcher, FullError
from recbole_llm.serving.body_limit import BodyLimit
from recbole_llm.serving.metrics import CONTENT_TYPE, Metrics
from recbole_llm.serving.service import Question, Service, UnknownItemsError

BODY_BYTES = 2**20  # the most that the body of a request may have


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        window_ms: how many milliseconds the first of a batch waits for others.
        max_batch: how many are answered at once.
        max_waiting: how many may wait; more are refused with status 503.
    """

    window_ms: float = 5.0
    max_batch: int = 64
    max_waiting: int = 1024


class Asked(BaseModel):
    """The body of `POST /recommend`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        None, description="Item tokens, the oldest first; without it, all that the user did."
    )
    user: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="A user of the dataset; with a history, whose it is."
    )
    k: int = Field(10, description="How many items.")
    exclude_seen: bool | None = Field(
        None, description="Whether items of the history are left out; by default as the server was started."
    )


class Item(BaseModel):
    """A recommended item."""

    item: str
    title: str | None = None
    score: float


class Found(BaseModel):
    """The answer to `POST /recommend`: items, best first; fewer than `k` where fewer are left."""

    items: list[Item]


def make_app(service: Service, batching: Batching, ready: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the application.

    Args:
        service: answers questions; it is asked by one thread at a time.
        batching: how requests are put together.
        ready: called once requests are served.
    """

    def work(questions: list[Question]) -> Sequence[Recommendation | Exception]:
        metrics.batches.observe(len(questions))
        with metrics.work.time():
            return service.answer(questions)

    batcher = Batcher(work, batching.window_ms / 1000, batching.max_batch, batching.max_waiting)
    metrics = Metrics(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            ready()
            yield

    # Their pages fetch scripts from other hosts.
    app = FastAPI(title="RecBole-LLM", docs_url=None, redoc_url=None, lifespan=lifespan)

    app.add_middleware(BodyLimit, limit=BODY_BYTES)

    @app.middleware("http")  # around the other, so that what is refused there is counted, too
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path != "/recommend":
            return await call_next(request)
        begun, status = time.perf_counter(), 500
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            metrics.requests.labels(status).inc()
            metrics.seconds.observe(time.perf_counter() - begun)

    @app.post("/recommend", response_model_exclude_none=True)
    async def recommend(asked: Asked) -> Found:
        history = None if asked.history is None else tuple(asked.history)
        question = Question(history, asked.user, asked.k, asked.exclude_seen)
        service.check(question)
        found = await batcher.ask(question)
        titles = service.titles
        return Found(
            items=[
                Item(item=item, title=None if titles is None else titles.get(item, ""), score=score)
                for item, score in zip(found.items, found.scores, strict=True)
            ]
        )

    @app.get("/health")
    async def health() -> Response:
        told = {"model": service.model_name, "dataset": service.dataset_name, "items": service.items}
        if batcher.alive:
            return JSONResponse({"status": "ok", **told})
        return JSONResponse({"status": "no request is answered any more: start the server again", **told}, 503)

    @app.get("/metrics")
    async def counts() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    _tell_errors(app)
    return app


# -- errors, as one sentence each --------------------------------------------------------------------------------------


def _tell_errors(app: FastAPI) -> None:
    app.exception_handler(RequestValidationError)(_misshapen)
    app.exception_handler(RecBoleLLMError)(_refused)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(FullError)(_full)
    app.exception_handler(Exception)(_defect)


def _error(status: int, sentence: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": sentence, **more}, status)


async def _misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
    """Tell the first thing that is wrong with a body."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _error(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    place = ".".join(map(str, first["loc"][1:]))
    names = ", ".join(Asked.model_fields)
    if first["type"] == "extra_forbidden":
        return _error(422, f"the body has '{place}', which is not understood: it may have {names}")
    if not place:
        return _error(422, f"the body must be a JSON object with {names}, sent with Content-Type: application/json")
    return _error(422, f"'{place}' of the body is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}")


async def _refused(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UnknownItemsError):
        return _error(422, str(error), unknown_items=error.items)
    if isinstance(error, DataError | SettingError):
        return _error(422, str(error))
    logging.getLogger().error("%s", error)
    return _error(500, str(error))


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    ways = "POST /recommend, GET /health and GET /metrics"
    sentence = f"there are {ways}, and nothing else" if error.status_code in (404, 405) else str(error.detail)
    return _error(error.status_code, sentence)


async def _full(_: Request, error: Exception) -> JSONResponse:
    response = _error(503, "too many requests wait already: try again in a second")
    response.headers["Retry-After"] = "1"
    return response


async def _defect(_: Request, error: Exception) -> JSONResponse:
    return _error(500, "the server failed on this request, and its log says why")
