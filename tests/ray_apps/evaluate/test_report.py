"""The report: its figures as text, and the page in a real browser."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from ray_apps.evaluate.harness import Benchmarks, Score
from ray_apps.evaluate.records import Answer, Evaluation
from ray_apps.evaluate.report import write_reports
from ray_apps.evaluate.results import results_of
from tests.browser import Browser, browser
from tests.ray_apps.evaluate.evaluations import answered, pair, single

HOSTILE = "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=1> 你好"


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """a|1 and <b> are compared by two judges; c has answered, and one of its answers was cut."""
    made = answered(tmp_path / "eval", "a|1", "<b>", "c", num_questions=30)
    models = ("<b>", "a|1")
    for number, outcomes in enumerate([("a", "a"), ("b", "b"), ("a", "b"), ("tie", "tie"), ("a", None)]):
        for one in pair(number, outcomes, models, text=HOSTILE):
            made.add(one)
    for one in pair(0, ("b", "b"), models, judge="other"):
        made.add(one)
    for number in range(3):
        for model, score in (("a|1", 5), ("<b>", 10)):
            made.add(single(number, model, score))
    cut = {"question_id": "q1", "category": "writing", "temperature": 0.0, "max_tokens": 9, "asked": "x"}
    made.add(Answer(model="c", text=HOSTILE, finish_reason="length", **cut))  # type: ignore[arg-type]
    return made


def write(evaluation: Evaluation, note: str | None = None) -> Path:
    benchmarks = [
        Benchmarks(
            model=model,
            source="x",
            versions={},
            scores=(Score(task="arc", metric="acc", value=value, stderr=0.01, num_samples=100),),
        )
        for model, value in (("a|1", 0.5), ("<b>", 0.625))
    ]
    write_reports(evaluation, results_of(evaluation, baseline="a|1"), benchmarks, note=note)
    return evaluation.directory


def test_the_same_figures_in_markdown_and_csv(evaluation: Evaluation) -> None:
    directory = write(evaluation, note="Only a test.")
    text = (directory / "report.md").read_text()
    assert "> Only a test." in text
    assert "&lt;b> against a\\|1: better or equal in 75.0%" in text
    assert "&lt;b> scores 200.0% (200% to 200%) of a\\|1: 30 against 15 points on 3 questions." in text
    assert "| arc, acc | 0.5000 ± 0.0100 | 0.6250 ± 0.0100 | +0.1250 |" in text
    assert "| judge and other | 1 | 0.0% (0% to 0%) |" in text
    with (directory / "figures.csv").open() as file:
        lines = {(one["judge"], one["model"], one["category"], one["figure"]): one for one in csv.DictReader(file)}
    assert lines["judge", "<b>", "all", "win_rate"]["value"] == "0.25"
    assert lines["judge", "<b>", "all", "wins"]["n"] == "4"
    assert lines["judge", "<b>", "all", "relative_score"]["value"] == "2.0"
    assert lines["lm-eval", "<b>", "all", "acc"]["value"] == "0.625"


def test_what_is_not_there_has_no_section(tmp_path: Path) -> None:
    singles = answered(tmp_path / "singles", "a")
    singles.add(single(0, "a", 7))
    pairs = answered(tmp_path / "pairs", "a", "b")
    for one in pair(0, ("a", "b")):
        pairs.add(one)
    for evaluation, there, absent in ((singles, "Scores", "Pairs"), (pairs, "Pairs", "Scores")):
        write_reports(evaluation, results_of(evaluation), [])
        text = (evaluation.directory / "report.md").read_text()
        assert f"### {there}" in text
        assert f"### {absent}" not in text
        assert "Standard benchmarks" not in text
        assert "Agreement" not in text
        assert "<svg" in (evaluation.directory / "report.html").read_text()


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser(375, 800) as opened:
        yield opened


@pytest.mark.slow
def test_the_page_on_a_phone(evaluation: Evaluation, window: Browser) -> None:
    window.open((write(evaluation, note="Only a test.") / "report.html").as_uri())
    assert "Only a test." in window.text("body")
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert window.text("#count") == "30 of 30 questions"
    assert len(window.driver.find_elements(By.CSS_SELECTOR, "#items details")) == 20
    window.button("More").click()
    assert len(window.driver.find_elements(By.CSS_SELECTOR, "#items details")) == 30
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
    )
    window.run(choose, "outcome", "split")
    assert window.text("#count") == "1 of 30 questions"
    window.run(choose, "outcome", "lost")
    assert window.text("#count") == "1 of 30 questions"
    window.driver.find_element(By.CSS_SELECTOR, "#items summary").click()
    window.wait_for("Verdicts of judge", "#items")
    shown = window.text("#items details")
    assert "a|1 first" in shown
    assert "<script>window.hacked=1</script>" in shown
    assert "cut at its longest" in shown
    window.run(choose, "outcome", "")
    window.run(choose, "text", "question 2")
    assert window.text("#count") == "11 of 30 questions"
    window.run(choose, "text", "")
    window.run(choose, "category", "maths")
    assert window.text("#count") == "15 of 30 questions"
    assert window.run("return window.hacked") is None
    assert window.driver.get_log("browser") == []
