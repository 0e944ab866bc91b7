"""Raw ShareGPT HTML to Markdown: our converter against libraries, in what survives and in speed.

    python -m benchmarks.html

Needs `make peers`. Each case is a message and what must be, or must not be, in its Markdown, whatever the style. Speed
is over the bundled raw chats, many times over. The libraries get messages one by one, as a chat pipeline has them. Ends
with one JSON line per goal.
"""

import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.support.goals import goal_line
from data_prep.html_to_markdown import html_to_markdown
from data_prep.sources import DEMO_CHATS

ROOT = Path(__file__).parent.parent
PEER = ROOT / ".peers" / "html" / "bin" / "python"
LIBRARIES = ("markdownify", "html2text", "html-to-markdown")
COPIES, ROUNDS = 100, 5

PAGE = '<div class="markdown prose w-full break-words dark:prose-invert light">'
CODE = (
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center"><span>python</span><button class="flex '
    'ml-auto gap-2"><svg viewBox="0 0 24 24"></svg>Copy code</button></div><div class="p-4 overflow-y-auto"><code '
    'class="!whitespace-pre hljs language-python"><span class="hljs-keyword">if</span> a &lt; b_1:\n    c()\n\n\n'
    "\td()\n</code></div></div></pre>"
)


@dataclass(frozen=True)
class Case:
    """A message, and the pieces that its Markdown must hold, or lack; `matches`: patterns, where style is free."""

    name: str
    message: str
    holds: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()


CASES = [
    Case("code and its indentation", PAGE + CODE + "</div>", ("if a < b_1:\n    c()\n\n\n\td()\n",)),
    Case("a fence with the language", PAGE + CODE + "</div>", ("```python\nif",)),
    Case("no copy button", PAGE + CODE + "</div>", ("c()",), ("Copy code",)),
    Case(
        "underscores and stars", f"{PAGE}<p>snake_case and 2 * 3 * 4</p></div>", ("snake_case and 2 * 3 * 4",), ("\\",)
    ),
    Case("numbers and hashes", f"{PAGE}<p>1. of May #1 - a+b</p></div>", ("1. of May #1 - a+b",), ("\\",)),
    Case("angle brackets", f"{PAGE}<p>vector&lt;int&gt; &amp; co</p></div>", ("vector<int> & co",)),
    Case("pagers go", f"1 / 2{PAGE}<p>Take it.</p></div>", ("Take it.",), ("1 / 2",)),
    Case("half a cup stays", f"{PAGE}<p>Take 1 / 2 cup.</p></div>", ("1 / 2 cup",)),
    Case(
        "nested lists",
        f"{PAGE}<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol></div>",
        (),
        matches=(r"^ *1\. +a\n", r"^ {2,}[-*+] +b$", r"^ *2\. +c$"),
    ),
    Case(
        "tables",
        f"{PAGE}<table><tr><th>A</th></tr><tr><td>1|2</td></tr></table></div>",
        (),
        matches=(r"^\|? *A *\|?$", r"^\|? *-+ *\|?$", r"1(\\\||&#124;)2"),
    ),
    Case(
        "formulas once",
        f'{PAGE}<p><span class="katex"><span class="katex-mathml"><math><mi>x</mi>'
        '<annotation encoding="application/x-tex">x^2</annotation></math>'
        '</span><span class="katex-html" aria-hidden="true">x2</span></span></p></div>',
        ("x^2",),
        ("xx^2", "x2x2", "x^2x2"),
    ),
    Case("a div someone typed", "What does <div> do?", ("What does <div> do?",)),
    Case("blank lines someone typed", "a\n\n\n\nb", ("a\n\n\n\nb",)),
    Case("code someone typed", "for x in y:\n    z[x] *= 2 < 3", ("for x in y:\n    z[x] *= 2 < 3",)),
    Case("10,000 nested tags", PAGE + "<div>" * 10_000 + "deep" + "</div>" * 10_001, ("deep",)),
]


def passes(case: Case, markdown: str | None) -> bool:
    return (
        markdown is not None
        and all(piece in markdown for piece in case.holds)
        and not any(piece in markdown for piece in case.lacks)
        and all(re.search(pattern, markdown, re.MULTILINE) for pattern in case.matches)
    )


def ours(messages: list[str]) -> tuple[list[str | None], float]:
    started = time.perf_counter()
    return [html_to_markdown(message) for message in messages], time.perf_counter() - started


def theirs(library: str, messages: list[str]) -> tuple[list[str | None], float]:
    command = [str(PEER), str(ROOT / "benchmarks" / "peers" / "html" / "convert.py"), library]
    answer = json.loads(
        subprocess.run(command, input=json.dumps(messages), text=True, capture_output=True, check=True).stdout
    )
    return answer["converted"], answer["seconds"]


def main() -> None:
    chats = json.loads(DEMO_CHATS.read_text())
    pages = [turn["value"] for chat in chats for turn in chat["conversations"] if turn["value"].startswith("<div")]
    size = sum(map(len, pages)) * COPIES / 1e6
    runs = {"ours": ours, **{name: partial(theirs, name) for name in (LIBRARIES if PEER.exists() else ())}}
    kept = {name: passed(name, run) for name, run in runs.items()}
    rates = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rates[name].append(size / run(pages * COPIES)[1])
    for name, measured in rates.items():
        print(f"{name}: {min(measured):.1f} to {max(measured):.1f} MB/s")
    if len(kept) > 1:
        medians = {name: statistics.median(measured) for name, measured in rates.items()}
        for what, results in {"cases that survive": kept, "MB/s": medians}.items():
            best = max(results[name] for name in LIBRARIES)
            print(goal_line(f"HTML, {what}, against the best library", results["ours"], best, at_least=1))


def passed(name: str, run: Callable[[list[str]], tuple[list[str | None], float]]) -> int:
    converted, _ = run([case.message for case in CASES])
    good = [passes(case, markdown) for case, markdown in zip(CASES, converted, strict=True)]
    lost = ", ".join(case.name for case, fine in zip(CASES, good, strict=True) if not fine)
    print(f"{name}: {sum(good)} of {len(CASES)}{f'; lost: {lost}' if lost else ''}")
    return sum(good)


if __name__ == "__main__":
    main()
