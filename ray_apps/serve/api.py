"""The HTTP API over a backend. Knows nothing of Ray or torch: the same app runs in a test, on a fake engine."""

import asyncio
from collections.abc import Sequence

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ray_apps.serve.chat import Header, complete, make_job, start_chunks
from ray_apps.serve.errors import install_error_handlers, unavailable
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import ChatCompletion
from ray_apps.serve.protocol.models import ModelCard, ModelList
from ray_apps.serve.routing import Router, ServedModel
from ray_apps.serve.sse import event_stream


def create_api(models: Sequence[ServedModel]) -> FastAPI:
    """The app that answers for `models`, whose names all differ."""
    api = FastAPI(title="vicuna-ray", docs_url=None, redoc_url=None)
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

    @api.post("/v1/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(request: ChatCompletionRequest) -> ChatCompletion | Response:
        route = router.find(request.model)
        header = Header(route.name)
        deltas = route.model.backend.generate(make_job(request, header.id, route.adapter))
        if not request.stream:
            return await complete(header, deltas, request.n or 1)
        chunks = await start_chunks(header, deltas, include_usage=request.include_usage, num_answers=request.n or 1)
        return StreamingResponse(event_stream(chunks), media_type="text/event-stream")

    return api
