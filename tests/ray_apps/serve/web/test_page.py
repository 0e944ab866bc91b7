"""The page as a person sees it: a real browser, a real server, models that say what they are told."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import Browser, browser
from tests.ray_apps.serve.web.page_server import Served, page_server

pytestmark = pytest.mark.slow

FIELD, ANSWER, NOTE = "#chat-field textarea", "#chat-0", "#chat-note"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with page_server(tmp_path_factory.mktemp("page") / "votes.jsonl") as started:
        yield started


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(window: Browser, served: Served) -> Browser:
    window.open(served.url)
    window.find(FIELD)
    return window


def say(page: Browser, text: str, mode: str = "chat") -> None:
    page.find(f"#{mode}-field textarea").send_keys(text + Keys.ENTER)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_person_talks(page: Browser, served: Served) -> None:
    say(page, "Hello **there** 你好")
    page.wait_for("First token after", NOTE)
    assert page.text(f"{ANSWER} .bot").strip().endswith("Hello there 你好")
    assert page.find(FIELD).get_attribute("value") == ""
    told = served.num_told
    page.button("Regenerate").click()
    wait_until(lambda: served.num_told > told and served.num_running == 0)
    page.wait_for("First token after", NOTE)
    page.button("Undo").click()
    wait_until(lambda: page.find(FIELD).get_attribute("value") == "Hello **there** 你好")
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .bot") == []


def test_what_a_model_says_is_never_run_and_nothing_is_asked_elsewhere(page: Browser, served: Served) -> None:
    page.asked_outside(served.url)
    evil = (
        "<img src=x onerror=document.title='run'> <script>document.title='run'</script> ![](http://127.0.0.1:9/x.png)"
    )
    say(page, f"{evil} $$x^2$$")
    page.wait_for("First token after", NOTE)
    assert "<script>" in page.text(ANSWER)
    assert page.run("return document.title") != "run"
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .message img[src^='http']") == []
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .katex")
    assert page.asked_outside(served.url) == set()


def test_code_is_highlighted(page: Browser) -> None:
    page.run("arguments[0].focus()", page.find(FIELD))
    for line in ("```python", "def f(): return 1", "```"):
        page.find(FIELD).send_keys(line, Keys.SHIFT + Keys.ENTER, Keys.NULL)
    page.find(FIELD).send_keys(Keys.ENTER)
    page.wait_for("First token after", NOTE)
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .bot code span")


def test_stop_keeps_what_was_said(page: Browser, served: Served) -> None:
    say(page, "0123456789 " * 60)
    page.wait_for("0123456789 0123456789", f"{ANSWER} .bot")
    page.button("Stop").click()
    wait_until(lambda: served.num_running == 0)
    said = page.text(f"{ANSWER} .bot")
    assert 0 < said.count("0123456789") < 60
    say(page, "next")
    page.wait_for("First token after", NOTE)
    assert "0123456789" in page.text(ANSWER)


def test_enter_within_an_input_method_does_not_send(page: Browser) -> None:
    """It takes what the method offers; the next one sends."""
    field = page.find(FIELD)
    field.click()
    page.driver.execute_cdp_cmd("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    for kind in ("rawKeyDown", "keyUp"):
        key = {"type": kind, "key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
        page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", key)
    time.sleep(1)
    assert field.get_attribute("value") == "nihao"
    assert page.text(f"{ANSWER} .user") == ""
    page.driver.execute_cdp_cmd("Input.insertText", {"text": "你好"})
    wait_until(lambda: field.get_attribute("value") == "你好")
    field.send_keys(Keys.ENTER)
    page.wait_for("你好", f"{ANSWER} .user")


def test_a_message_that_is_too_long_is_said_in_words(page: Browser) -> None:
    page.run("arguments[0].value = 'x'.repeat(2001); arguments[0].dispatchEvent(new Event('input'))", page.find(FIELD))
    page.find(FIELD).send_keys(Keys.ENTER)
    page.wait_for("This message has 2,001 characters; at most 2,000 are taken.", NOTE)


def test_opinions_are_kept(page: Browser, served: Served) -> None:
    before = len(list(served.votes.read()))
    say(page, "what do you think?")
    page.wait_for("First token after", NOTE)
    page.find(f"{ANSWER} button[aria-label='Like']").click()
    page.wait_for("Thank you.", NOTE)
    votes = list(served.votes.read())[before:]
    assert [(vote.kind, vote.verdict, vote.models) for vote in votes] == [("thumb", "up", ("alpaca",))]


def test_a_battle(page: Browser, served: Served) -> None:
    page.button("Battle").click()
    say(page, "who is better?", "battle")
    page.wait_for("B: First token after", "#battle-note")
    assert not any(name in page.text("body") for name in ("alpaca", "llama", "vicuna"))
    page.button("Tie").click()
    page.wait_for("Thank you. It was", "#battle-note")
    vote = list(served.votes.read())[-1]
    assert (vote.kind, vote.verdict) == ("battle", "tie")
    assert page.text("#battle-note") == "Thank you. It was {} against {}.".format(*vote.models)


def test_on_a_phone(served: Served) -> None:
    with browser(390, 800) as phone:
        phone.open(served.url)
        say(phone, "a long line " * 30)
        phone.wait_for("First token after", NOTE)
        assert phone.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert phone.run("return window.innerWidth") == 390


def test_everything_is_reached_by_the_keyboard(page: Browser) -> None:
    page.find(FIELD).click()
    reached = set()
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.driver.switch_to.active_element.text.strip())
    assert {"Stop", "Regenerate", "Undo", "New chat"} <= reached


def test_a_server_that_dies_is_said(tmp_path: Path) -> None:
    with browser() as window, page_server(tmp_path / "votes.jsonl") as own:
        window.open(own.url)
        say(window, "0123456789 " * 100)
        window.wait_for("0123456789", f"{ANSWER} .bot")
        own.process.kill()
        window.wait_for("Connection to the server was lost", seconds=30)


def test_export_is_one_click(page: Browser, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    say(page, "AT&T, a < b & `<i>`")
    page.wait_for("First token after", NOTE)
    page.button("Export").click()
    saved = tmp_path / "chat.json"
    wait_until(saved.exists)
    said = [message["content"] for message in json.loads(saved.read_text())["messages"]]
    assert said == ["AT&T, a < b & `<i>`"] * 2


def test_maths_with_signs_of_html(page: Browser) -> None:
    say(page, "$$a<b$$")
    page.wait_for("First token after", NOTE)
    assert "a<b" in page.text(f"{ANSWER} .bot .katex").replace("\u200b", "").replace("\n", "")
