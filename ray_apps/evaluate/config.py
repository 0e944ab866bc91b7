"""The `eval` section of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.config import DiskPath, Settings


class JudgeConfig(Settings):
    """Who judges."""

    url: str | None = None
    """An OpenAI-compatible endpoint. Without it the tuned model stands in, which shows that everything works, and
    nothing of how good a model is."""
    model: str | None = None
    """What the endpoint calls it; required with `url`."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    kinds: list[Literal["pair", "single"]] = Field(default=["pair", "single"], min_length=1)
    """Two answers against each other in both orders, or each from 1 to 10."""
    repeats: int = Field(1, ge=1)
    """How often the same is asked; from 2 on the report says whether the judge agrees with itself."""
    max_tokens: int = Field(1024, ge=16)
    form: Literal["auto", "json", "text"] = "auto"
    """Whether a JSON schema holds it to the form of a verdict; `auto`: where the endpoint knows how."""
    concurrency: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.url and not self.model:
            raise ValueError("model: is required with url")
        return self


class EvalConfig(Settings):
    """The base against the tuned model."""

    output: DiskPath
    """Where answers, verdicts and the report go."""
    questions: str = "english"
    """`english`, `chinese` or a file of JSON lines."""
    per_category: int | None = Field(None, ge=1)
    """So many questions of each category; None: all."""
    choices: int = Field(1, ge=1)
    """Answers to each question."""
    max_tokens: int = Field(1024, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """Of all questions; None: that of their category."""
    system: str | None = None
    concurrency: int = Field(8, ge=1)
    """Calls at a time to each model."""
    judge: JudgeConfig = JudgeConfig()
    seed: int = 0
    """Of the bootstrap."""
