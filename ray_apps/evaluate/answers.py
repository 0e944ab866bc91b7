"""Ask models the questions of an evaluation. What is answered already is not asked again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_prep.errors import EvalError
from ray_apps.evaluate.client import CallError, Client, Message, Patience, Target
from ray_apps.evaluate.questions import TEMPERATURES, Question
from ray_apps.evaluate.records import Answer, Evaluation, Failure, digest


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    `temperatures`: of categories, where they are not those of `TEMPERATURES`; `temperature`: of all, if it is given.
    """

    num_choices: int = 1
    max_tokens: int = 1024
    system: str | None = None
    temperature: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    concurrency: int = 8
    patience: Patience = field(default_factory=Patience)

    def temperature_of(self, category: str) -> float:
        """At which a question of the category is answered."""
        if self.temperature is not None:
            return self.temperature
        return {**TEMPERATURES, **self.temperatures}.get(category, 0.7)

    def digest_of(self, question: Question) -> str:
        """Tells an answer to this question, asked in this way, from others."""
        return digest(question.turns, self.temperature_of(question.category), self.max_tokens, self.system)


@dataclass(frozen=True)
class Summary:
    """What a step did.

    `num_kept` were there already; `num_cut` ended at their longest; `failed`: what came to nothing.
    """

    num_done: int = 0
    num_kept: int = 0
    num_cut: int = 0
    failed: tuple[str, ...] = ()


OnDone = Callable[[], object]


async def ask_models(
    evaluation: Evaluation,
    questions: Sequence[Question],
    targets: Mapping[str, Target],
    asking: Asking,
    on_done: OnDone = lambda: None,
) -> Summary:
    """Ask all `targets`, by the names under which they are compared, at once.

    Raises:
        EvalError: an endpoint is of no use; or other answers are there. What was answered is kept.
    """
    with evaluation.alone("answers"):
        evaluation.keep_questions(questions)
        parts = await gathered(
            _ask_model(evaluation, questions, name, target, asking, on_done) for name, target in targets.items()
        )
    return Summary(
        sum(part.num_done for part in parts),
        sum(part.num_kept for part in parts),
        sum(part.num_cut for part in parts),
        tuple(one for part in parts for one in part.failed),
    )


async def _ask_model(
    evaluation: Evaluation,
    questions: Sequence[Question],
    name: str,
    target: Target,
    asking: Asking,
    on_done: OnDone,
) -> Summary:
    present = evaluation.answers(name)
    _check_same(present, questions, asking, name)
    known = {(answer.question_id, answer.choice, answer.turn): answer for answer in present}
    async with Client(target, concurrency=asking.concurrency, patience=asking.patience) as client:

        async def one(question: Question, choice: int) -> list[Answer] | str:
            turns = [known.get((question.question_id, choice, turn)) for turn in range(len(question.turns))]
            answers = _answers(client, name, question, choice, asking, turns)
            done = []
            try:
                async for answer in answers:
                    evaluation.add(answer)
                    done.append(answer)
            except CallError as error:
                about = f"question {question.question_id}, choice {choice}"
                evaluation.add(Failure(step="answers", model=name, about=about, reason=str(error)))
                return f"{name}: {about}: {error}"
            on_done()
            return done

        done = await gathered(one(question, choice) for question in questions for choice in range(asking.num_choices))
    answers = [answer for one in done if not isinstance(one, str) for answer in one]
    failed = tuple(one for one in done if isinstance(one, str))
    num_cut = sum(answer.finish_reason == "length" for answer in [*answers, *present])
    return Summary(len(answers), len(present), num_cut, failed)


def _check_same(present: Iterable[Answer], questions: Sequence[Question], asking: Asking, name: str) -> None:
    known = {question.question_id: asking.digest_of(question) for question in questions}
    for answer in present:
        if known.get(answer.question_id) != answer.asked:
            raise EvalError(
                f"{name}: question {answer.question_id} was asked with other words or settings here; take another "
                "directory, or --fresh"
            )


async def _answers(
    client: Client, name: str, question: Question, choice: int, asking: Asking, present: Sequence[Answer | None]
) -> AsyncIterator[Answer]:
    """Yield the answers to the turns that have none, one after another."""
    messages: list[Message] = [] if asking.system is None else [{"role": "system", "content": asking.system}]
    temperature = asking.temperature_of(question.category)
    for turn, text in enumerate(question.turns):
        messages.append({"role": "user", "content": text})
        answer = present[turn]
        if answer is None:
            reply = await client.chat(messages, temperature=temperature, max_tokens=asking.max_tokens)
            answer = Answer(
                question_id=question.question_id,
                category=question.category,
                model=name,
                choice=choice,
                turn=turn,
                text=reply.text,
                finish_reason=reply.finish_reason,
                temperature=temperature,
                max_tokens=asking.max_tokens,
                asked=asking.digest_of(question),
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
            )
            yield answer
        messages.append({"role": "assistant", "content": answer.text})


Result = TypeVar("Result")


async def gathered(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Their results in order; when one raises, the others are given up first."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
