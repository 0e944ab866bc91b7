import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.serve.jobs import CalledTool
from ray_apps.serve.tool_calls import call_reader
from ray_apps.serve.tools import CallFormat, call_format

CALL = {"name": "weather", "arguments": {"city": "Köln 🌧"}}
OTHER = {"name": "time", "arguments": {}}


def read(how: CallFormat, pieces: list[str], *, several: bool = True) -> tuple[str, list[tuple[str, object]]]:
    """All text, and the calls as names and arguments."""
    reader = call_reader(how, several=several)
    told = [*(reader.push(piece) for piece in pieces), reader.finish()]
    calls: list[CalledTool] = [call for piece in told for call in piece.calls]
    assert len({call.id for call in calls}) == len(calls)
    return "".join(piece.text for piece in told), [(call.name, json.loads(call.arguments)) for call in calls]


def hermes(*calls: object) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


ANSWERS: list[tuple[CallFormat, str, str, list[dict[str, object]]]] = [
    ("hermes", f"Let me see.\n{hermes(CALL, OTHER)}", "Let me see.", [CALL, OTHER]),
    ("hermes", "<tool_call>\n" + json.dumps(CALL), "", [CALL]),
    ("hermes", "a < b and <tool", "a < b and <tool", []),
    ("hermes", "<tool_call>no JSON</tool_call> after", "<tool_call>no JSON</tool_call> after", []),
    ("llama", json.dumps({"name": "weather", "parameters": CALL["arguments"]}), "", [CALL]),
    ("llama", "<|python_tag|>" + "; ".join(map(json.dumps, (CALL, OTHER))), "", [CALL, OTHER]),
    ("llama", '{"answer": 4}', '{"answer": 4}', []),
    ("llama", "It is {4}.", "It is {4}.", []),
    ("mistral", "[TOOL_CALLS]" + json.dumps([CALL, OTHER]), "", [CALL, OTHER]),
    ("mistral", '[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "Köln 🌧"}', "", [OTHER, CALL]),
    ("mistral", "[TOOL_CALLS] perhaps", "[TOOL_CALLS] perhaps", []),
    ("demanded", json.dumps([CALL]), "", [CALL]),
    ("demanded", json.dumps(OTHER), "", [OTHER]),
    ("demanded", '{"name": "wea', '{"name": "wea', []),  # cut off at max_tokens
]


@pytest.mark.parametrize(("how", "answer", "text", "calls"), ANSWERS)
@given(data=st.data())
def test_calls_are_read_however_the_answer_is_cut(
    how: CallFormat, answer: str, text: str, calls: list[dict[str, object]], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(answer) - 1)), max_size=8)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    expected = [(call["name"], call["arguments"]) for call in calls]
    assert read(how, pieces) == (text, expected)
    assert read(how, pieces, several=False)[1] == expected[:1]


@given(
    how=st.sampled_from(["hermes", "llama", "mistral", "demanded"]), pieces=st.lists(st.text(max_size=9), max_size=9)
)
def test_what_is_no_call_is_text_to_the_last_character(how: CallFormat, pieces: list[str]) -> None:
    assert read(how, pieces) == ("".join(pieces), [])


def test_a_long_number_is_one_all_the_same() -> None:
    text, calls = read("demanded", [f'{{"name": "count", "arguments": {{"to": {10**40}}}}}'])
    assert text == ""
    assert calls == [("count", {"to": 10**40})]


@pytest.mark.parametrize("how", ["hermes", "llama", "mistral", "demanded"])
@pytest.mark.parametrize(
    "arguments",
    ['{"a": ' * 65 + "0" + "}" * 65, '{"a": ' * 5000, '{"a": NaN}', '{"a": "\\ud800"}', '{"\\ud800": 0}'],
)
def test_a_call_that_no_request_may_hold_is_text(how: CallFormat, arguments: str) -> None:
    answer = f'{{"name": "weather", "arguments": {arguments}}}'
    answer = {"hermes": f"<tool_call>{answer}</tool_call>", "mistral": f"[TOOL_CALLS]{answer}"}.get(how, answer)
    assert read(how, [answer]) == (answer, [])


@pytest.mark.parametrize(
    ("template", "how"),
    [
        ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
        ("{% if tools %}<tools></tools> <tool_call>{% endif %}", "hermes"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ('{% if tools %}Respond as {"name": f, "parameters": {}}{% endif %}', "llama"),
        ("{% if tools %}<function=name>{% endif %}", None),
    ],
)
def test_how_calls_are_written_is_known_from_the_template(template: str, how: CallFormat | None) -> None:
    assert call_format(template) == how
