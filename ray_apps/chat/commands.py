"""What can be typed beside messages: `/reset`, or in FastChat's way `!!reset`."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One that is known. `argument`: what follows it, as the help has it; in brackets if it may be left out."""

    name: str
    argument: str
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    Command("help", "", "list these", ("?",)),
    Command("exit", "", "leave; so does Ctrl-D", ("quit",)),
    Command("reset", "", "begin a new chat with the same system prompt"),
    Command("remove", "", "take the last question and its answer back"),
    Command("regenerate", "", "answer the last question once more", ("regen",)),
    Command("edit", "[TEXT]", "change the last question and ask again"),
    Command("system", "[TEXT]", "show or set the system prompt; `none` takes it away"),
    Command("save", "FILE", "write the chat as JSON"),
    Command("load", "FILE", "go on with a chat that was saved, here or by FastChat"),
    Command("stats", "", "tokens and times of the last answer"),
)
_FORM = re.compile(r"(?:!!|/)([\w?]+)(?:\s+(.*))?", re.DOTALL)


class UnknownCommandError(ValueError):
    """It looks like a command and is none, or lacks its argument; the text says what would be valid."""


def parse(line: str) -> tuple[str, str] | None:
    """The command's name and its argument; None if the line is a message, as `/etc/hosts, what is it?` is one.

    Raises:
        UnknownCommandError: there is no such command, or it needs an argument.
    """
    match = _FORM.fullmatch(line.strip())
    if match is None:
        return None
    word, argument = match[1].lower(), (match[2] or "").strip()
    command = next((command for command in COMMANDS if word in (command.name, *command.aliases)), None)
    if command is None:
        raise UnknownCommandError(f"there is no command {line.split()[0]}; /help lists them, // begins a message")
    if command.argument and not command.argument.startswith("[") and not argument:
        raise UnknownCommandError(f"usage: /{command.name} {command.argument}")
    return command.name, argument


def help_text() -> str:
    """The commands, a line each."""
    forms = [f"/{command.name} {command.argument}".strip() for command in COMMANDS]
    width = max(map(len, forms))
    return "\n".join(f"{form:<{width}}  {command.help}" for form, command in zip(forms, COMMANDS, strict=True))
