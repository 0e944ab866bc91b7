"""The HTTP API over a backend. Knows nothing of Ray or torch: the same app runs in a test, on a fake engine."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from ray_apps.serve import chat, completions, embeddings
from ray_apps.serve.answers import Header, new_id, started
from ray_apps.serve.body import StrictJsonRoute
from ray_apps.serve.errors import ERROR_RESPONSES, install_error_handlers, unavailable
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import ChatCompletion
from ray_apps.serve.protocol.completion_request import CompletionRequest
from ray_apps.serve.protocol.completion_response import Completion
from ray_apps.serve.protocol.embeddings import EmbeddingList, EmbeddingRequest
from ray_apps.serve.protocol.models import ModelCard, ModelList
from ray_apps.serve.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from ray_apps.serve.routing import Router, ServedModel
from ray_apps.serve.sse import STREAM_RESPONSES, event_stream
from ray_apps.serve.tokenize import tokens_job


def create_api(models: Sequence[ServedModel]) -> FastAPI:
    """The app that answers for `models`, whose names all differ."""
    api = FastAPI(title="vicuna-ray", docs_url=None, redoc_url=None, responses=ERROR_RESPONSES)
    api.router.route_class = StrictJsonRoute
    router = Router(models)
    install_error_handlers(api)

    @api.get("/health")
    async def health() -> Response:
        if not all(await asyncio.gather(*(model.backend.is_ready() for model in models))):
            raise unavailable()
        return JSONResponse({"status": "ok"})

    @api.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=router.cards)

    @api.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        return router.card(name)

    @api.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSES)
    async def create_chat_completion(request: ChatCompletionRequest) -> ChatCompletion | Response:
        route = router.find(request.model)
        header, num_answers = Header(route.name, new_id("chatcmpl")), request.num_answers
        deltas = route.model.backend.generate(chat.make_job(request, header.id, route.adapter))
        if not request.stream:
            return await chat.complete(header, deltas, num_answers)
        pieces = await started(deltas, num_answers)
        return _stream(chat.chunks(header, pieces, include_usage=request.include_usage, num_answers=num_answers))

    @api.post("/v1/completions", response_model=Completion, responses=STREAM_RESPONSES)
    async def create_completion(request: CompletionRequest) -> Completion | Response:
        route = router.find(request.model)
        header, num_answers = Header(route.name, new_id("cmpl")), len(request.prompt) * request.num_answers
        deltas = route.model.backend.generate(completions.make_job(request, header.id, route.adapter))
        if not request.stream:
            return await completions.complete(header, deltas, num_answers)
        pieces = await started(deltas, num_answers)
        return _stream(completions.chunks(header, pieces, include_usage=request.include_usage))

    @api.post("/v1/embeddings")
    async def create_embedding(request: EmbeddingRequest) -> EmbeddingList:
        route = router.find(request.model)
        found = await route.model.backend.embed(embeddings.make_job(request, new_id("embd"), route.adapter))
        return embeddings.render(request, route.name, found)

    @api.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> TokenizeResponse:
        backend = router.find_or_only(request.model).model.backend
        tokens = await backend.tokenize(tokens_job(request))
        return TokenizeResponse(
            count=len(tokens.token_ids), max_model_len=tokens.max_model_len, tokens=list(tokens.token_ids)
        )

    @api.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> DetokenizeResponse:
        backend = router.find_or_only(request.model).model.backend
        return DetokenizeResponse(prompt=await backend.detokenize(tuple(request.tokens)))

    return api


def _stream(chunks: AsyncGenerator[BaseModel, None]) -> Response:
    return StreamingResponse(event_stream(chunks), media_type="text/event-stream")
