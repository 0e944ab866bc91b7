"""What is a command, what is a message, and what is a mistake."""

import pytest

from ray_apps.chat.commands import COMMANDS, UnknownCommandError, help_text, parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/reset", ("reset", "")),
        ("!!regen", ("regenerate", "")),
        ("  /QUIT ", ("exit", "")),
        ("/save my chat.json", ("save", "my chat.json")),
        ("/system", ("system", "")),
        ("/edit one\ntwo", ("edit", "one\ntwo")),
        ("/etc/hosts, what is it?", None),
        ("hello /reset", None),
        ("1/2", None),
    ],
)
def test_both_forms_are_commands_and_paths_are_not(line: str, expected: tuple[str, str] | None) -> None:
    assert parse(line) == expected


def test_mistakes_say_what_would_be_valid() -> None:
    with pytest.raises(UnknownCommandError, match="there is no command !!foo; /help lists them"):
        parse("!!foo bar")
    with pytest.raises(UnknownCommandError, match="usage: /save FILE"):
        parse("/save")


def test_help_lists_all() -> None:
    assert [line.split()[0] for line in help_text().splitlines()] == [f"/{command.name}" for command in COMMANDS]
