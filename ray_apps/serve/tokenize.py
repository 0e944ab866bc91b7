"""`POST /tokenize`: from a request to a job."""

from ray_apps.serve.jobs import ChatPrompt, TextPrompt, TokenizeJob
from ray_apps.serve.protocol.messages import to_template
from ray_apps.serve.protocol.tokenize import TokenizeRequest


def tokens_job(request: TokenizeRequest) -> TokenizeJob:
    """What the request asks the backend to do."""
    if request.messages is not None:
        tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ())
        prompt = ChatPrompt(to_template(request.messages), tools)
        return TokenizeJob(prompt, "messages")
    return TokenizeJob(TextPrompt(request.prompt or "", request.add_special_tokens is not False))
