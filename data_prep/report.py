"""`report.html`: what a dataset is made of, as one page that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from data_prep.manifest import Manifest

REPORT_NAME = "report.html"
_MOST_BARS = 24

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
  table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
  td.n { text-align: right; font-variant-numeric: tabular-nums; }
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem; }
  .bar { background: #4c72b0; height: .8rem; min-width: 1px; border-radius: 2px; } .bars td:last-child { width: 60%; }
  .chat { border: 1px solid #d8dce4; border-radius: 6px; margin: 1rem 0; }
  .chat h3 { font-size: .85rem; margin: .5rem .8rem; }
  .turn { padding: .4rem .8rem; border-top: 1px solid #e8ebf0; white-space: pre-wrap; overflow-wrap: anywhere; }
  .assistant { background: #f2f7f1; } .masked { background: #f7ebeb; } .role { color: #68718a; font-size: .8rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts %}<tr><th>{{ name }}</th><td class="n">{{ value }}</td></tr>
{% endfor %}</table>
<div class="charts">
{% for chart in charts %}<section>
<h2>{{ chart.title }}</h2>
<table class="bars">
{% for bar in chart.bars %}<tr><td>{{ bar.name }}</td><td class="n">{{ "{:,}".format(bar.count) }}</td>
<td><div class="bar" style="width:{{ bar.percent }}%"></div></td></tr>
{% else %}<tr><td>none</td></tr>
{% endfor %}</table>
</section>
{% endfor %}</div>
<h2>{{ samples|length }} cleaned chats, chosen by a hash of their id</h2>
{% for chat in samples %}<article class="chat"><h3>{{ chat.id }}</h3>
{% for message in chat.messages %}<div class="turn {{ message.role }}{{ ' masked' if message.weight == 0 }}">
<div class="role">{{ message.role }}{{ ', not trained on' if message.weight == 0 }}</div>{{ message.content }}</div>
{% endfor %}</article>
{% endfor %}</body>
</html>
"""


def write_report(directory: Path, manifest: Manifest, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the report of the dataset in `directory`; `samples` are conversations as records."""
    page = Environment(autoescape=True).from_string(_PAGE)  # what people typed is shown, never run
    text = page.render(
        title=f"Dataset {Path(manifest.config['output']).name}",
        facts=_facts(manifest),
        charts=[
            {"title": title, "bars": _bars(values, in_order)}
            for title, values, in_order in (
                ("Chats by language, duplicates included", manifest.histograms["languages"], False),
                ("Chats by number of messages, duplicates included", manifest.histograms["turns"], True),
                ("Chats by tokens, from the power of two", manifest.histograms["tokens"], True),
                ("Rows by share of the context filled, %", manifest.histograms["fill"], True),
                ("Left out, by reason", manifest.counts.dropped, False),
                ("Answers masked, by reason", manifest.counts.masked, False),
            )
        ],
        samples=[_shown(sample) for sample in samples],
    )
    (directory / REPORT_NAME).write_text(text, "utf-8")


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    counts, train, held_out = manifest.counts, manifest.train, manifest.eval
    numbers = {
        "records read": counts.records,
        "conversations among them": counts.read,
        "order of roles repaired": counts.repaired,
        "messages with HTML": counts.html_messages,
        "of which something fits a row": counts.fitted,
        "without duplicates": counts.unique,
        "parts more by splitting": counts.split_parts,
        "left out": sum(counts.dropped.values()),
        "conversations to train on": train.conversations,
        "conversations held out": held_out.conversations,
        "rows": train.rows,
        "tokens": train.tokens,
        "trained tokens": train.trained_tokens,
    }
    return [(name, f"{number:,}") for name, number in numbers.items()] + [
        ("rows filled", f"{train.fill:.2%}"),
        ("template", manifest.template),
        ("context length", f"{manifest.context_length:,}"),
    ]


def _bars(values: Mapping[str, int], in_order: bool) -> list[dict[str, Any]]:
    """Bars of a histogram: by number in their order, or the largest first and the rest together."""
    if in_order:
        items = sorted(values.items(), key=lambda item: int(item[0]))
        shown, rest = items[:_MOST_BARS], items[_MOST_BARS:]
        last = f"{rest[0][0]} and more" if rest else ""
    else:
        items = sorted(values.items(), key=lambda item: (-item[1], item[0]))
        shown, rest, last = items[:_MOST_BARS], items[_MOST_BARS:], "others"
    shown = [*shown, *([(last, sum(count for _, count in rest))] if rest else [])]
    most = max((count for _, count in shown), default=1)
    return [{"name": name, "count": count, "percent": round(100 * count / most, 1)} for name, count in shown]


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without characters that a page may not hold."""
    messages = [{**message, "content": _printable(message["content"])} for message in sample["messages"]]
    return {"id": _printable(sample["id"]), "messages": messages}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)
