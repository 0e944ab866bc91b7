"""Asks an endpoint through LiteLLM, and prints what came of it."""

import json
import sys
from typing import Any

import litellm

URL = sys.argv[1]
HELLO = [{"role": "user", "content": "Who are you? 🙂"}]
CITY = {"enum": ["Köln", "Bonn"]}
SCHEMA = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def chat(**fields: Any) -> Any:
    asked = {"model": "openai/tiny", "messages": HELLO, "temperature": 0, "max_tokens": 12, **fields}
    return litellm.completion(api_base=URL, num_retries=0, **asked)


def refusal(**fields: Any) -> str | None:
    """The kind of the error."""
    try:
        chat(**fields)
    except Exception as error:
        return type(error).__name__
    return None


def main() -> None:
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    follows = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    # A random model likes white space, of which JSON may have any amount.
    terse = {"frequency_penalty": 2, "max_tokens": 300}
    held = chat(response_format=follows, **terse)
    called = chat(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, **terse)
    (call,) = called.choices[0].message.tool_calls
    text = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="def hello", max_tokens=3, temperature=0, api_base=URL
    )
    embedded = litellm.embedding(model="openai/tiny", input=["one", "two"], api_base=URL)
    told = {
        "text": whole.choices[0].message.content,
        "finish_reason": whole.choices[0].finish_reason,
        "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "streamed_usage": [[one.usage.prompt_tokens, one.usage.completion_tokens] for one in chunks if "usage" in one],
        "held": held.choices[0].message.content,
        "called": [called.choices[0].finish_reason, call.function.name, call.function.arguments],
        "completed": [text.usage.completion_tokens, text.choices[0].finish_reason],
        "embedded": [len(one["embedding"]) for one in embedded.data],
        "unknown": refusal(model="openai/another"),
        "too_long": refusal(messages=[{"role": "user", "content": "word " * 3000}]),
        "wrong": refusal(top_p=7),
        "not_allowed": refusal(api_key="sk-wrong"),
    }
    print(json.dumps(told))


main()
