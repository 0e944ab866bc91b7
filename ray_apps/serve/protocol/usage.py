"""Token counts of every answer."""

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    """Of the tokens read, those that an earlier request had read already."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens read and written, over all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
