"""Asks an endpoint through LangChain's package for OpenAI, and prints what came of it."""

import json
import sys
from collections.abc import Callable
from typing import Literal

import openai
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL, DIRECTORY = sys.argv[1:]
HELLO = "Who are you? 🙂"
TEXTS = ["def hello(name):", "你是谁?"]
City = Literal["Köln", "Bonn"]


class Place(BaseModel):
    """A place."""

    city: City


@tool
def weather(city: City) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def main() -> None:
    # A random model likes white space, of which JSON may have any amount.
    model = ChatOpenAI(model="tiny", base_url=URL, temperature=0, max_tokens=300, frequency_penalty=2, max_retries=0)
    brief = model.bind(max_tokens=12)
    whole = brief.invoke(HELLO)
    chunks = list(brief.stream(HELLO, stream_usage=True))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    place = model.with_structured_output(Place, method="json_schema").invoke(HELLO)
    called = model.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke(HELLO)
    (call,) = called.tool_calls
    after = model.bind_tools([weather], max_tokens=12).invoke([HumanMessage(HELLO), called, weather.invoke(call)])
    told = {
        "text": whole.content,
        "usage": [whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]],
        "streamed": streamed.content,
        "streamed_usage": [streamed.usage_metadata["input_tokens"], streamed.usage_metadata["output_tokens"]],
        "logprobs": len(brief.bind(logprobs=True).invoke(HELLO).response_metadata["logprobs"]["content"]),
        "batched": [answer.usage_metadata["output_tokens"] for answer in brief.batch([HELLO] * 3)],
        "place": place.city,
        "called": [call["name"], call["args"]["city"]],
        "after": after.usage_metadata["output_tokens"],
        "too_long": refusal(lambda: model.invoke("word " * 3000)),
        **embeddings(),
    }
    print(json.dumps(told))


def embeddings() -> dict[str, object]:
    plain = OpenAIEmbeddings(model="tiny", base_url=URL, check_embedding_ctx_length=False)
    cut = OpenAIEmbeddings(model="tiny", base_url=URL, tiktoken_enabled=False, tiktoken_model_name=DIRECTORY)
    ids_of_others = OpenAIEmbeddings(model="tiny", base_url=URL, max_retries=0)
    return {
        "embedded": plain.embed_documents(TEXTS),
        "cut_embedded": cut.embed_documents(TEXTS),
        "ids_of_others": refusal(lambda: ids_of_others.embed_documents(TEXTS)),
    }


def refusal(ask: Callable[[], object]) -> list[object]:
    """The kinds of error that it is, its code, and which field it names."""
    try:
        ask()
    except openai.APIStatusError as error:
        return [[kind.__name__ for kind in type(error).__mro__], error.code, error.param]
    return []


main()
