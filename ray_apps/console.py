"""What a person sees: stages with a progress bar and their time, and errors of one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)


class Stage:
    """One stage on screen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.note = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn(f"[bold]{name:<7}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """Show how far the stage is."""
        self._progress.update(self._task, completed=done, total=total, description=text)

    def finish(self, note: str) -> None:
        """Say in a few words what came out."""
        self.note = note


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Show a progress bar while the block runs and one line with its time when it ended well."""
    shown = Stage(name)
    started = time.monotonic()
    with shown._progress:
        yield shown
    seconds = time.monotonic() - started
    console.print(f"[green]✓[/green] [bold]{name:<7}[/bold] {seconds:6.1f} s  {escape(shown.note)}", soft_wrap=True)
