"""Arguments that several commands take."""

import click

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[section.key=value]...")
FRESH = click.option("--fresh", is_flag=True, help="Start over: replace what an earlier run has written.")
