from typing import Any

import pytest
from pydantic import ValidationError

from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.completion_request import CompletionRequest
from ray_apps.serve.protocol.embeddings import EmbeddingRequest
from ray_apps.serve.protocol.fields import MAX_MESSAGES, MAX_TOKEN_IDS, Wire
from ray_apps.serve.protocol.tokenize import DetokenizeRequest, TokenizeRequest

WRONG = [0.5] * 1000
USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatCompletionRequest, {"messages": WRONG}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": WRONG}]}),
        (ChatCompletionRequest, {"messages": [{"role": "assistant", "content": "x", "tool_calls": WRONG}]}),
        (ChatCompletionRequest, {"messages": [USER], "tools": WRONG}),
        (ChatCompletionRequest, {"messages": [USER], "stop": WRONG}),
        (ChatCompletionRequest, {"messages": [USER], "stop_token_ids": WRONG}),
        (CompletionRequest, {"prompt": WRONG}),
        (CompletionRequest, {"prompt": "x", "stop_token_ids": WRONG}),
        (EmbeddingRequest, {"input": WRONG}),
        (TokenizeRequest, {"messages": WRONG}),
        (TokenizeRequest, {"messages": [USER], "tools": WRONG}),
        (DetokenizeRequest, {"tokens": WRONG}),
    ],
)
def test_what_is_wrong_a_thousand_times_is_told_once(kind: type[Wire], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "m", **fields})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatCompletionRequest, {"messages": [USER] * (MAX_MESSAGES + 1)}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [TEXT] * (MAX_MESSAGES + 1)}]}),
        (TokenizeRequest, {"messages": [USER] * (MAX_MESSAGES + 1)}),
        (CompletionRequest, {"prompt": [1] * (MAX_TOKEN_IDS + 1)}),
        (EmbeddingRequest, {"input": [[1] * (MAX_TOKEN_IDS + 1)]}),
        (DetokenizeRequest, {"tokens": [1] * (MAX_TOKEN_IDS + 1)}),
    ],
)
def test_lists_are_bounded(kind: type[Wire], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="at most") as caught:
        kind.model_validate({"model": "m", **fields})
    assert caught.value.error_count() == 1
