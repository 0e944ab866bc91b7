"""The checks on screen as they come in, or as JSON when all are done."""

import json
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.markup import escape

from ray_apps.console import console
from ray_apps.doctor.check import Check

MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}
NAME_WIDTH = 24


def print_report(checks: Iterable[Check]) -> bool:
    """Print each check as it comes, and what they amount to; gives whether there is no problem."""
    counts = dict.fromkeys(MARKS, 0)
    group = ""
    with console.status("looking"):
        for check in checks:
            shown = "" if check.group == group else check.group
            group = check.group
            counts[check.status] += 1
            line = f"{MARKS[check.status]} [bold]{shown:<12}[/bold] {escape(check.name):<{NAME_WIDTH}} "
            console.print(line + escape(check.found), soft_wrap=True)
            if check.advice:
                console.print(f"  {'':<12} {'':<{NAME_WIDTH}} → {escape(check.advice)}", soft_wrap=True)
    warnings = "warning" if counts["warning"] == 1 else "warnings"
    problems = "problem" if counts["problem"] == 1 else "problems"
    console.print(f"{counts['ok']} ok, {counts['warning']} {warnings}, {counts['problem']} {problems}")
    return counts["problem"] == 0


def print_json(checks: Iterable[Check]) -> bool:
    """Print a JSON list with an object for each check; gives whether there is no problem."""
    found = list(checks)
    click.echo(json.dumps([asdict(check) for check in found], indent=1, ensure_ascii=False))
    return all(check.status != "problem" for check in found)
