"""Have a model judge answers: two against each other in both orders, or each by itself from 1 to 10."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from data_prep.errors import EvalError
from ray_apps.evaluate.answers import OnDone, Summary, gathered
from ray_apps.evaluate.client import CallError, Client, Patience, RefusedError, Target
from ray_apps.evaluate.prompts import FORMS, Form, Kind, NotInFormError, Prompt, load_prompt
from ray_apps.evaluate.questions import Question
from ray_apps.evaluate.records import Evaluation, Failure, Outcome, Verdict, digest, judgement

Conversation = tuple[str, ...]


@dataclass(frozen=True)
class Judging:
    """How is judged.

    `kinds`: pairs, single answers or both. `baseline`: whom all others are compared with; None: everybody with
    everybody. `num_repeats`: how often the same is asked, to see whether the judge agrees with itself. `form`: see
    `FORMS`; `auto` takes the first that the endpoint knows. `tries`: askings until a verdict must be in form.
    """

    kinds: tuple[Kind, ...] = ("pair", "single")
    baseline: str | None = None
    num_repeats: int = 1
    max_tokens: int = 1024
    temperature: float = 0.0
    form: Literal["auto", "json", "text"] = "auto"
    tries: int = 3
    prompts: Path | None = None
    concurrency: int = 8
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class _Case:
    """One judgement to be made. `models`: a and b, or the one; `first`: which of them stands first."""

    kind: Kind
    question: Question
    models: tuple[str, ...]
    choice: int
    first: str
    repeat: int
    conversations: tuple[Conversation, ...]

    @property
    def judged(self) -> str:
        return digest(self.question.turns, self.question.references, self.conversations)

    @property
    def about(self) -> str:
        return judgement(self.question.question_id, self.choice, self.models, self.first, self.repeat)

    @property
    def shown(self) -> tuple[Conversation, ...]:
        """The conversations in the order in which the judge sees them."""
        return self.conversations if self.first == self.models[0] else self.conversations[::-1]

    def outcome(self, letter: str) -> Outcome:
        """What `A`, `B` or `tie` is in terms of a and b."""
        if letter == "tie":
            return "tie"
        return "a" if (letter == "A") == (self.first == self.models[0]) else "b"


async def judge_answers(
    evaluation: Evaluation, name: str, target: Target, judging: Judging, on_done: OnDone = lambda: None
) -> Summary:
    """Have `target`, which is called `name` in verdicts, judge what is answered and not judged yet.

    Raises:
        EvalError: the endpoint is of no use, there is nothing to judge, or other answers were judged before.
    """
    with evaluation.alone("judge"):
        prompts = {kind: load_prompt(kind, judging.prompts) for kind in judging.kinds}
        called = {kind: evaluation.keep_prompt(prompt.name, prompt.source) for kind, prompt in prompts.items()}
        cases = list(planned(evaluation, judging))
        present = _present(evaluation.verdicts(name))
        missing = [case for case in cases if not _is_judged(case, present.get(_key(case, called[case.kind])))]
        forms = _Forms(judging.form)
        async with Client(target, concurrency=judging.concurrency, patience=judging.patience) as client:

            async def one(case: _Case) -> str | None:
                judge = _Judge(client, prompts[case.kind], forms, judging)
                try:
                    verdict = await judge.verdict(case, name, called[case.kind])
                except CallError as error:
                    spent = judge.spent
                    evaluation.add(
                        Failure(
                            step="judge",
                            model=name,
                            about=case.about,
                            reason=str(error),
                            in_form=not isinstance(error, _NoVerdictError),
                            prompt_tokens=spent[0],
                            completion_tokens=spent[1],
                        )
                    )
                    return f"{name}: {case.about}: {error}"
                evaluation.add(verdict)
                on_done()
                return None

            # The first by itself: which form the endpoint knows is found out once.
            done = [await one(case) for case in missing[:1]] + await gathered(map(one, missing[1:]))
            failed = [reason for reason in done if reason]
    return Summary(len(missing) - len(failed), len(cases) - len(missing), 0, tuple(failed))


class _NoVerdictError(CallError):
    """The judge answered, but never in form."""


class _Forms:
    """Which form the endpoint knows, as far as it is known."""

    def __init__(self, wanted: Literal["auto", "json", "text"]) -> None:
        kept: dict[str, tuple[Form, ...]] = {"auto": FORMS, "json": FORMS[:2], "text": FORMS[2:]}
        self._open = list(kept[wanted])

    @property
    def best(self) -> Form:
        return self._open[0]

    def give_up(self, form: Form) -> bool:
        """Not ask in this form again; whether there is another."""
        if form in self._open and len(self._open) > 1:
            self._open.remove(form)
        return self.best != form


class _Judge:
    """Asks for one verdict until it is in form. `spent`: tokens read and written for it."""

    def __init__(self, client: Client, prompt: Prompt, forms: _Forms, judging: Judging) -> None:
        self._client = client
        self._prompt = prompt
        self._forms = forms
        self._judging = judging
        self.spent = (0, 0)

    async def verdict(self, case: _Case, name: str, called: str) -> Verdict:
        """The verdict.

        Raises:
            CallError: there is none.
        """
        form = self._forms.best
        messages = self._prompt.messages(case.question, case.shown, form)
        attempts, reason = 0, ""
        while attempts < self._judging.tries:
            try:
                reply = await self._client.chat(
                    messages,
                    temperature=self._judging.temperature,
                    max_tokens=self._judging.max_tokens,
                    **self._prompt.fields(form, self._judging.max_tokens),
                )
            except RefusedError:
                if not self._forms.give_up(form):
                    raise
                form = self._forms.best
                messages = self._prompt.messages(case.question, case.shown, form)
                continue
            attempts += 1
            self.spent = (self.spent[0] + reply.prompt_tokens, self.spent[1] + reply.completion_tokens)
            try:
                return self._made(case, name, called, self._prompt.read(reply.text, form), reply.text, attempts)
            except NotInFormError as error:
                cut = " (it was cut at its longest)" if reply.finish_reason == "length" else ""
                reason = f"{error}{cut}"
                messages = [*messages, {"role": "assistant", "content": reply.text}, self._prompt.again(form)]
        raise _NoVerdictError(f"no verdict in form after {attempts} tries: {reason}")

    def _made(self, case: _Case, name: str, called: str, read: str | int, text: str, attempts: int) -> Verdict:
        return Verdict(
            judge=name,
            kind=case.kind,
            question_id=case.question.question_id,
            category=case.question.category,
            models=case.models,
            choice=case.choice,
            first=case.first,
            outcome=case.outcome(read) if isinstance(read, str) else None,
            score=read if isinstance(read, int) else None,
            prompt=called,
            judged=case.judged,
            repeat=case.repeat,
            attempts=attempts,
            text=text,
            prompt_tokens=self.spent[0],
            completion_tokens=self.spent[1],
        )


_Key = tuple[str, str, tuple[str, ...], int, str, int, str]


def _key(case: _Case, called: str) -> _Key:
    return (case.kind, case.question.question_id, case.models, case.choice, case.first, case.repeat, called)


def _present(verdicts: Sequence[Verdict]) -> dict[_Key, Verdict]:
    return {
        (one.kind, one.question_id, one.models, one.choice, one.first, one.repeat, one.prompt): one for one in verdicts
    }


def _is_judged(case: _Case, verdict: Verdict | None) -> bool:
    if verdict is not None and verdict.judged != case.judged:
        raise EvalError(f"{case.about}: other answers were judged here; take another directory, or --fresh")
    return verdict is not None


def planned(evaluation: Evaluation, judging: Judging) -> Iterator[_Case]:
    """All judgements that are to be made on the answers there are.

    Raises:
        EvalError: there are too few models, or the baseline has not answered.
    """
    answered = evaluation.conversations()
    models = sorted({model for model, _, _ in answered})
    if judging.baseline is not None and judging.baseline not in models:
        raise EvalError(f"baseline: {judging.baseline!r} has not answered; valid: {', '.join(models) or 'none'}")
    if not models:
        raise EvalError(f"{evaluation.directory}: no model has answered yet; see `vicuna eval answers`")
    if "pair" in judging.kinds and len(models) < 2:
        raise EvalError(f"a pair needs two models; {models[0]} alone has answered; valid: --kind single")
    questions = {question.question_id: question for question in evaluation.questions()}
    for repeat in range(judging.num_repeats):
        if "pair" in judging.kinds:
            for pair in _pairs(models, judging.baseline):
                yield from _pair_cases(pair, answered, questions, repeat)
        if "single" in judging.kinds:
            for (model, question_id, choice), conversation in answered.items():
                question = questions[question_id]
                yield _Case("single", question, (model,), choice, model, repeat, (conversation,))


def _pairs(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    return [pair for pair in combinations(models, 2) if baseline is None or baseline in pair]


def _pair_cases(
    pair: tuple[str, str],
    answered: Mapping[tuple[str, str, int], Conversation],
    questions: Mapping[str, Question],
    repeat: int,
) -> Iterator[_Case]:
    for (model, question_id, choice), conversation in answered.items():
        other = answered.get((pair[1], question_id, choice))
        if model != pair[0] or other is None:
            continue
        case = _Case("pair", questions[question_id], pair, choice, pair[0], repeat, (conversation, other))
        yield case
        yield replace(case, first=pair[1])
