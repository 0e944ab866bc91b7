"""`POST /v1/embeddings`: vectors as numbers or as bytes."""

import base64
import struct
from collections.abc import Sequence

from ray_apps.serve.completions import as_prompts
from ray_apps.serve.errors import bad_request
from ray_apps.serve.jobs import EmbeddingJob, Embeddings
from ray_apps.serve.protocol.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage


def make_job(request: EmbeddingRequest, request_id: str, adapter: str | None = None) -> EmbeddingJob:
    """What the request asks the backend to do."""
    return EmbeddingJob(request_id, as_prompts(request.input), adapter)


def render(request: EmbeddingRequest, model: str, found: Embeddings) -> EmbeddingList:
    """The response.

    Raises:
        ApiError: other dimensions are asked for than the model has.
    """
    size = len(found.vectors[0])
    if request.dimensions not in (None, size):
        raise bad_request(f"dimensions: {request.dimensions} is not valid; the model has {size}", param="dimensions")
    pack = _base64 if request.encoding_format == "base64" else list
    data = [Embedding(index=index, embedding=pack(vector)) for index, vector in enumerate(found.vectors)]
    usage = EmbeddingUsage(prompt_tokens=found.num_prompt_tokens, total_tokens=found.num_prompt_tokens)
    return EmbeddingList(data=data, model=model, usage=usage)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
