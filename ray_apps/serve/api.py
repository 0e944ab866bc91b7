"""The HTTP API over a backend. Knows nothing of Ray or torch: the same app runs in a test, on a fake engine."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from ray_apps.serve import chat, completions, deadline, embeddings
from ray_apps.serve.affinity import session_of
from ray_apps.serve.answers import Header, new_id, started
from ray_apps.serve.body import StrictJsonRoute
from ray_apps.serve.deadline import time_allowed, until, within
from ray_apps.serve.errors import ERROR_RESPONSES, install_error_handlers, unavailable
from ray_apps.serve.jobs import Delta, Job
from ray_apps.serve.moderation import Moderating
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import ChatCompletion
from ray_apps.serve.protocol.completion_request import CompletionRequest
from ray_apps.serve.protocol.completion_response import Completion
from ray_apps.serve.protocol.embeddings import EmbeddingList, EmbeddingRequest
from ray_apps.serve.protocol.models import ModelCard, ModelList
from ray_apps.serve.protocol.moderations import ModerationList, ModerationRequest
from ray_apps.serve.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from ray_apps.serve.routing import Route, Router, ServedModel
from ray_apps.serve.sse import STREAM_RESPONSES, event_stream
from ray_apps.serve.tokenize import tokens_job
from ray_apps.serve.tools import check_schemas


def create_api(models: Sequence[ServedModel], moderating: Moderating | None = None) -> FastAPI:
    """The app that answers for `models`, whose names all differ; and with what they are moderated by."""
    api = FastAPI(title="vicuna-ray", docs_url=None, redoc_url=None, responses=ERROR_RESPONSES)
    api.router.route_class = StrictJsonRoute
    router = Router(models)
    install_error_handlers(api)

    @api.head("/health", include_in_schema=False)
    @api.get("/health")
    async def health() -> Response:
        states = await asyncio.gather(*(model.backend.state() for model in models))
        if not set(states) <= {"ready", "asleep", "waking"}:
            raise unavailable()
        return JSONResponse({"status": "ok", "models": Counter(states)})

    @api.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=await router.cards())

    @api.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        return await router.card(name)

    @api.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSES)
    async def create_chat_completion(request: ChatCompletionRequest, http: Request) -> ChatCompletion | Response:
        route = router.find(request.model)
        await check_schemas(request.tools)
        header, num_answers = Header(route.name, new_id("chatcmpl")), request.num_answers
        deltas = _generate(route, chat.make_job(request, header.id, route.adapter), http)
        if not request.stream:
            return await chat.complete(header, deltas, num_answers)
        pieces = await started(deltas, num_answers)
        counts = {"include_usage": request.include_usage, "counts_on_the_way": request.counts_on_the_way}
        return _stream(chat.chunks(header, pieces, num_answers=num_answers, **counts))

    @api.post("/v1/completions", response_model=Completion, responses=STREAM_RESPONSES)
    async def create_completion(request: CompletionRequest, http: Request) -> Completion | Response:
        route = router.find(request.model)
        header, num_answers = Header(route.name, new_id("cmpl")), len(request.prompt) * request.num_answers
        deltas = _generate(route, completions.make_job(request, header.id, route.adapter), http)
        if not request.stream:
            return await completions.complete(header, deltas, num_answers)
        pieces = await started(deltas, num_answers)
        counts = {"include_usage": request.include_usage, "counts_on_the_way": request.counts_on_the_way}
        return _stream(completions.chunks(header, pieces, **counts))

    @api.post("/v1/embeddings")
    async def create_embedding(request: EmbeddingRequest, http: Request) -> EmbeddingList:
        route = router.find(request.model)
        job = embeddings.make_job(request, new_id("embd"), route.adapter)
        found = await within(_seconds(route, http), route.model.backend.embed(job))
        return embeddings.render(request, route.name, found)

    if moderating is not None:

        @api.post("/v1/moderations")
        async def create_moderation(request: ModerationRequest) -> ModerationList:
            return await moderating.endpoint(request.input, new_id("modr"))

    @api.post("/tokenize")
    async def tokenize(request: TokenizeRequest, http: Request) -> TokenizeResponse:
        route = router.find_or_only(request.model)
        await check_schemas(request.tools)
        tokens = await within(_seconds(route, http), route.model.backend.tokenize(tokens_job(request)))
        return TokenizeResponse(
            count=len(tokens.token_ids), max_model_len=tokens.max_model_len, tokens=list(tokens.token_ids)
        )

    @api.post("/detokenize")
    async def detokenize(request: DetokenizeRequest, http: Request) -> DetokenizeResponse:
        route = router.find_or_only(request.model)
        text = await within(_seconds(route, http), route.model.backend.detokenize(tuple(request.tokens)))
        return DetokenizeResponse(prompt=text)

    return api


def _generate(route: Route, job: Job, http: Request) -> AsyncGenerator[Delta, None]:
    """The answers to `job`, until its time is up."""
    session = session_of(job, route.name, http.headers.get("x-session-id"))
    return until(route.model.backend.generate(replace(job, session=session)), _seconds(route, http))


def _seconds(route: Route, http: Request) -> float | None:
    return time_allowed(http.headers.get(deadline.HEADER), route.model.request_timeout_s)


def _stream(chunks: AsyncGenerator[BaseModel, None]) -> Response:
    return StreamingResponse(event_stream(chunks), media_type="text/event-stream")
