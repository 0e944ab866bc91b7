"""The report: its figures as text, what is left out of it, and the page in a real browser."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.evaluate import charts
from ray_apps.evaluate.exhibits import exhibits
from ray_apps.evaluate.harness import Benchmarks, Score
from ray_apps.evaluate.questions import Question
from ray_apps.evaluate.records import Answer, Evaluation, Failure, judgement
from ray_apps.evaluate.report import escaped, write_reports
from ray_apps.evaluate.results import Prices, results_of
from tests.browser import Browser, browser
from tests.ray_apps.evaluate.evaluations import answered, pair, single

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=http://127.0.0.1:9/x onerror=window.hacked=1> 你好 {{ 7 * 7 }}"
)
BASE, TUNED, OTHER = "a|1", "<b>", "c_d"
NUM_QUESTIONS = 30
PAIRS = [("a", "a"), ("b", "b"), ("a", "b"), ("tie", "tie"), ("a", None)]
"""In terms of `<b>` and `a|1`: won, lost, orders disagree, tied, and one verdict missing."""


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """`<b>` and `a|1` are compared by two judges; `c_d` has answered alone, and was cut once."""
    made = Evaluation(tmp_path / "eval")
    made.keep_questions([question(number) for number in range(NUM_QUESTIONS)])
    for number in range(NUM_QUESTIONS):
        for model in (BASE, TUNED, OTHER):
            for turn in range(len(question(number).turns)):
                made.add(answer(number, model, turn))
    for number, outcomes in enumerate(PAIRS):
        for one in pair(number, outcomes, (TUNED, BASE), text=HOSTILE):
            made.add(one)
    for one in pair(
        0, ("b", "b"), (TUNED, BASE), judge="Richter 二", text='{"explanation": "Sachlich.", "verdict": "B"}'
    ):
        made.add(one)
    for number in range(3):
        for model, score in ((BASE, 5), (TUNED, 10)):
            made.add(single(number, model, score))
    made.add(failure(judgement("q4", 0, (TUNED, BASE), BASE, 0), "it never ended"))
    made.add(failure(judgement("q5", 0, (TUNED, BASE), BASE, 0), "refused"))
    return made


def question(number: int) -> Question:
    turns = (f"question {number}", "And 再问一次?")[: 2 if number == 0 else 1]
    references = (f"reference of {number}",) * len(turns) if number == 0 else ()
    category = ("maths", "writing")[number % 2]
    return Question(question_id=f"q{number}", category=category, turns=turns, references=references)


def answer(number: int, model: str, turn: int) -> Answer:
    is_cut = (number, model) == (1, TUNED)
    return Answer(
        question_id=f"q{number}",
        category=("maths", "writing")[number % 2],
        model=model,
        turn=turn,
        text=f"{model} answers turn {turn}: {HOSTILE if is_cut else 'yes'}",
        finish_reason="length" if is_cut else "stop",
        temperature=0.0,
        max_tokens=9,
        asked="x",
    )


def failure(about: str, reason: str) -> Failure:
    return Failure(step="judge", model="judge", about=about, reason=reason, in_form=False)


def reached(model: str, value: float, stderr: float | None = 0.03) -> Benchmarks:
    score = Score(task="arc", metric="acc", value=value, stderr=stderr, num_samples=100)
    return Benchmarks(model=model, source="x", versions={}, scores=(score,))


def write(evaluation: Evaluation, note: str | None = None) -> Path:
    results = results_of(evaluation, baseline=BASE, prices=Prices(2.0, 10.0))
    write_reports(evaluation, results, [reached(BASE, 0.5, 0.04), reached(TUNED, 0.625)], note=note)
    return evaluation.directory


def figures(directory: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """By judge, model, against, category and figure."""
    with (directory / "figures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = {tuple(line[name] for name in ("judge", "model", "against", "category", "figure")): line for line in lines}
    assert len(found) == len(lines), "no figure is there twice"
    return found


def test_the_three_files_are_named(evaluation: Evaluation) -> None:
    paths = write_reports(evaluation, results_of(evaluation), [])
    assert [path.name for path in paths] == ["report.html", "report.md", "figures.csv"]
    assert sorted(path.name for path in evaluation.directory.iterdir() if path in paths) == sorted(
        p.name for p in paths
    )
    assert not list(evaluation.directory.glob("*.aside"))


def test_the_headline_is_a_sentence_of_each_judge(evaluation: Evaluation) -> None:
    text = (write(evaluation, note="Only a *test*.") / "report.md").read_text()
    assert "> **Only a \\*test\\*.**" in text
    assert (
        "- judge: \\<b\\> against a\\|1: better or equal in 75 % (25 to 100) of 4 questions; wins 25 %, adjusted win "
        "rate 50 %; reaches 200.0 % (200.0 to 200.0) of a\\|1's points; sign test p = 1.00; 1 left out for want of a "
        "verdict." in text
    )
    assert "- Richter 二: \\<b\\> against a\\|1: better or equal in 0 % (0 to 0) of 1 question; wins 0 %" in text
    assert "49" not in text, "a template in a text is text"


def test_the_same_figures_are_tables_in_markdown(evaluation: Evaluation) -> None:
    lines = (write(evaluation) / "report.md").read_text().splitlines()
    assert any(
        line.startswith("| \\<b\\> | a\\|1 | all | 1 | 2 | 1 | 1 | 25.0 % (0.0 to 75.0) | 50.0 %") for line in lines
    )
    assert any(line.startswith("| \\<b\\> | a\\|1 | writing | 0 | 1 | 1 | 0 | 0.0 %") for line in lines)
    assert "| all | 3 | 10.00 (10.00 to 10.00) | 5.00 (5.00 to 5.00) |" in lines
    assert "| never in form | 0 | 2 |" in lines
    assert "| cost | \\$0.0006 | \\$0.0045 |" in lines
    assert (
        "| Richter 二 | judge | 0.0 % (0.0 to 0.0) | 0.0 % (0.0 to 0.0) of 1 | 0.00 (0.00 to 0.00) | 1 | 3 |" in lines
    )
    assert "| arc | acc | 100 | 0.5000 ± 0.0400 | 0.6250 ± 0.0300 | +0.1250 ± 0.0500 |" in lines
    assert f"| \\<b\\> | {NUM_QUESTIONS + 1} | 1 | " in "\n".join(lines)
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    heads = [index for index, line in enumerate(line for line in lines if line.startswith("|")) if "---" in line]
    assert all(widths[index - 1] == widths[index] == widths[index + 1] for index in heads)


def test_every_figure_is_a_line_of_the_csv(evaluation: Evaluation) -> None:
    found = figures(write(evaluation))
    won = found["judge", TUNED, BASE, "all", "win_rate"]
    assert (won["kind"], won["value"], won["low"], won["high"], won["n"]) == ("pair", "0.25", "0", "0.75", "4")
    assert found["judge", TUNED, BASE, "all", "adjusted_win_rate"]["value"] == "0.5"
    assert found["judge", TUNED, BASE, "maths", "wins"]["value"] == "1"
    assert found["judge", TUNED, BASE, "all", "left_out"]["value"] == "1"
    assert found["judge", TUNED, BASE, "all", "relative_score"]["value"] == "2"
    assert found["judge", TUNED, "", "all", "mean_score"]["n"] == "3"
    assert found["judge", TUNED, "", "all", "bradley_terry"]["value"] == "1000"
    assert found["judge", TUNED, BASE, "all", "pairwise_win_rate"]["n"] == "4"
    assert found["judge", "", "", "all", "position_consistent"]["value"] == "0.75"
    assert found["judge", "", "", "all", "out_of_form"]["value"] == "2"
    assert found["judge", "", "", "all", "self_agreement"]["value"] == ""
    assert found["Richter 二", "", "judge", "all", "equal"]["n"] == "1"
    ahead = found["", TUNED, BASE, "arc", "acc_difference"]
    assert (ahead["kind"], ahead["value"], ahead["low"], ahead["high"]) == (
        "benchmark",
        "0.125",
        "0.0270018",
        "0.222998",
    )


def test_a_benchmark_without_an_error_has_no_bounds(evaluation: Evaluation) -> None:
    write_reports(evaluation, results_of(evaluation), [reached(BASE, 0.5, None)])
    line = figures(evaluation.directory)["", BASE, "", "arc", "acc"]
    assert (line["value"], line["low"], line["high"]) == ("0.5", "", "")


@pytest.mark.parametrize("baseline", [None, "a"])
def test_what_is_not_there_has_no_section(tmp_path: Path, baseline: str | None) -> None:
    singles = answered(tmp_path / "singles", "a")
    singles.add(single(0, "a", 7))
    pairs = answered(tmp_path / "pairs", "a", "b")
    for one in pair(0, ("a", "b")):
        pairs.add(one)
    alone = answered(tmp_path / "alone", "a", "b")
    alone.add(pair(0, ("a", None))[0])
    cases = (
        (singles, "- a: scores 7.00 (7.00 to 7.00) of 10 over 1 question.", "### Scores", "### Pair"),
        (pairs, "better or equal in 100 %", "### Pairs", "### Scores"),
        (alone, "no verdict in both orders on any of 1.", "### Pairs", "### Ratings"),
    )
    for evaluation, sentence, there, absent in cases:
        write_reports(evaluation, results_of(evaluation, baseline=baseline), [])
        text, page = ((evaluation.directory / f"report.{kind}").read_text() for kind in ("md", "html"))
        assert sentence in text
        assert there in text
        assert absent not in text
        assert not re.search("Standard benchmarks|Agreement", text + page)
        assert "<h2>" in page
        assert ("win rate, a tie" in page) == (evaluation is pairs)


def test_without_a_baseline_every_pair_has_its_sentence(tmp_path: Path) -> None:
    evaluation = answered(tmp_path / "three", "a", "b", "c")
    for models in (("a", "b"), ("a", "c"), ("b", "c")):
        for number in range(2):
            for one in pair(number, ("a", "a"), models):
                evaluation.add(one)
    write_reports(evaluation, results_of(evaluation), [])
    text = (evaluation.directory / "report.md").read_text()
    assert [line[:13] for line in text.splitlines() if "against" in line and line[0] == "-"] == [
        "- a against b",
        "- a against c",
        "- b against c",
    ]
    assert "Who beats whom" in (evaluation.directory / "report.html").read_text()


def test_choices_and_repetitions_are_told_from_questions(tmp_path: Path) -> None:
    evaluation = answered(tmp_path / "repeated", "a", "b")
    for repeat in range(3):
        for one in pair(0, ("a", "a"), repeat=repeat):
            evaluation.add(one)
    write_reports(evaluation, results_of(evaluation), [])
    text = (evaluation.directory / "report.md").read_text()
    assert "of 3 comparisons on 1 question" in text
    assert "| agrees with itself when asked again | 100.0 % of 4 |" in text


def test_models_that_never_met_are_said_to_be_apart(tmp_path: Path) -> None:
    evaluation = answered(tmp_path / "apart", "a", "b", "c", "d")
    for models in (("a", "b"), ("c", "d")):
        for one in pair(0, ("a", "a"), models):
            evaluation.add(one)
    write_reports(evaluation, results_of(evaluation), [])
    assert "were only: a, b; c, d." in (evaluation.directory / "report.md").read_text()


@given(st.text(max_size=40), st.integers(2, 20))
def test_a_name_is_cut_to_its_room(text: str, width: int) -> None:
    shown = charts.shortened(text, width)
    assert len(shown) <= width
    assert shown == text or shown.endswith("…")


@given(st.text(max_size=30))
def test_a_cell_is_one_cell_on_one_line(text: str) -> None:
    assert not re.search(r"(?<!\\)(\\\\)*[|<>`*]", escaped(text))
    assert len(escaped(text).splitlines()) <= 1


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(evaluation: Evaluation) -> None:
    page = (write(evaluation) / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<(link|iframe|object|base)\b|@import|url\(", page)
    assert page.count("<script") == 2, "the data and the script"
    assert "default-src 'none'" in page


@pytest.fixture(scope="module", params=[375, 1100])
def window(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with browser(request.param, 800) as opened:
        yield opened


def choose(window: Browser, name: str, value: str) -> str:
    """Choose in a filter; what is said of how many there are."""
    window.run(
        "const field = document.getElementById('by-' + arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input'))",
        name,
        value,
    )
    if name == "text":
        window.run("return new Promise((done) => setTimeout(done, 300))")
    return window.text("#count")


@pytest.mark.slow
def test_the_page_in_a_browser(evaluation: Evaluation, window: Browser) -> None:
    url = (write(evaluation, note="Only a test.") / "report.html").as_uri()
    window.open(url)
    assert window.text(".banner") == "Only a test."
    assert len(window.driver.find_elements("css selector", "section.judge")) == 2
    assert window.text("#count") == "1 item", "of the first judge"
    assert choose(window, "judge", "1") == "6 items", "five with verdicts, and one that failed in its only order"
    counts = {value: choose(window, "outcome", value) for value in ("won", "lost", "tied", "disagree", "none")}
    assert counts == {"won": "1 item", "lost": "1 item", "tied": "1 item", "disagree": "1 item", "none": "2 items"}
    window.find("#items .item:first-child summary").click()
    window.wait_for("No verdict: it never ended", "#items")
    window.find("#items .item:last-child summary").click()
    window.wait_for("No verdict: refused", "#items")
    choose(window, "outcome", "")
    assert choose(window, "category", "maths") == "3 items"
    assert choose(window, "category", "") == "6 items"
    assert choose(window, "text", "ANSWERS TURN 1") == "1 item"
    window.find("#items summary").click()
    window.wait_for("Judge judge", "#items")
    shown = window.text("#items details")
    for told in ("question 0", "And 再问一次?", "reference of 0", "<b> answers turn 1: yes", "a|1 answers turn 0: yes"):
        assert told in shown
    assert shown.count("<b> is better") == 2
    assert "<script>window.hacked=1</script>" in shown
    assert "5 of 10" in shown
    assert choose(window, "text", "nowhere") == "Nothing is like that."
    choose(window, "text", "")
    assert choose(window, "judge", "0") == "1 item"
    window.find("#items summary").click()
    window.wait_for("Sachlich.", "#items")
    assert "explanation" not in window.text("#items")
    choose(window, "judge", "1")
    assert choose(window, "models", "singles") == "6 items"
    choose(window, "models", "pairs")
    choose(window, "outcome", "lost")
    window.find("#items summary").click()
    window.wait_for("cut at its longest", "#items")
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    window.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert window.run("return window.hacked") is None
    assert window.driver.get_log("browser") == []
    assert window.asked_outside(url) == set()


def test_an_item_has_its_pair_whichever_model_is_named_first(tmp_path: Path) -> None:
    evaluation = answered(tmp_path / "turned", "a", "b")
    for number, models in enumerate((("a", "b"), ("b", "a"))):
        for one in pair(number, ("b", "b"), models):
            evaluation.add(one)
    items = exhibits(evaluation, results_of(evaluation))["items"]
    assert [(item["models"], item["outcome"]) for item in items] == [([0, 1], "lost"), ([0, 1], "won")]


@pytest.mark.slow
def test_pages_of_many_items(tmp_path: Path, window: Browser) -> None:
    evaluation = answered(tmp_path / "many", "a", "b", num_questions=45)
    for number in range(45):
        for one in pair(number, ("a", "a")):
            evaluation.add(one)
    write_reports(evaluation, results_of(evaluation), [])
    window.open((evaluation.directory / "report.html").as_uri())
    assert window.text("#count") == "1 to 20 of 45 items"
    window.button("Next").click()
    window.button("Next").click()
    assert window.text("#count") == "41 to 45 of 45 items"
    assert not window.button("Next").is_enabled()
    assert len(window.driver.find_elements("css selector", "#items details")) == 5
    window.button("Previous").click()
    assert window.text("#count") == "21 to 40 of 45 items"
