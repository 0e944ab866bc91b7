"""The HTTP API over a backend. Knows nothing of Ray or torch: the same app runs in a test, on a fake engine."""

import time

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ray_apps.serve.backend import ChatBackend
from ray_apps.serve.chat import Header, complete, make_job, start_chunks
from ray_apps.serve.errors import install_error_handlers, model_not_found, unavailable
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import ChatCompletion
from ray_apps.serve.protocol.models import ModelCard, ModelList
from ray_apps.serve.sse import event_stream


def create_api(backend: ChatBackend, model_name: str) -> FastAPI:
    """The app that answers for `model_name` with `backend`."""
    api = FastAPI(title="vicuna-ray", docs_url=None, redoc_url=None)
    card = ModelCard(id=model_name, created=int(time.time()))
    install_error_handlers(api)

    @api.get("/health")
    async def health() -> Response:
        if not await backend.is_ready():
            raise unavailable()
        return JSONResponse({"status": "ok"})

    @api.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[card])

    @api.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        if name != model_name:
            raise model_not_found(name)
        return card

    @api.post("/v1/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(request: ChatCompletionRequest) -> ChatCompletion | Response:
        if request.model != model_name:
            raise model_not_found(request.model)
        header = Header(model_name)
        deltas = backend.chat(make_job(request, header.id))
        if not request.stream:
            return await complete(header, deltas, request.n or 1)
        chunks = await start_chunks(header, deltas, include_usage=request.include_usage, num_answers=request.n or 1)
        return StreamingResponse(event_stream(chunks), media_type="text/event-stream")

    return api
