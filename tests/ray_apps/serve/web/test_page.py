"""The page as a person sees it: a real browser, a real server, models that say what they are told."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import ApiKeys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.guards import guarded
from ray_apps.serve.policy import Limits, Page, Security
from ray_apps.serve.routing import ServedModel
from ray_apps.votes import VoteFile
from tests.browser import Browser, browser

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[4]
FIELD, ANSWER, NOTE = "#chat-field textarea", "#chat-0", "#chat-note"


class Served:
    """The page and the API on a port of their own."""

    def __init__(self, votes: Path) -> None:
        from ray_apps.serve.web.mounting import WithPage, mount_page

        self.votes = VoteFile(votes)
        self.engine = FakeEngine(pause_s=0.02)
        backend = EngineBackend(self.engine, stream_interval_s=0.05)
        models = [ServedModel(name, backend) for name in ("alpaca", "llama", "vicuna")]
        settings, keys = Page(is_shown=True, votes=str(votes), max_characters=2000), ApiKeys()
        api = guarded(create_api(models), keys, Security(), Limits(), write_line=None)
        app = WithPage(api, mount_page(models, settings, keys), keys, allow_open=False)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("page") / "votes.jsonl")


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    yield served.start()
    served.stop()


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(window: Browser, url: str) -> Browser:
    window.open(url)
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
    told = served.engine.stats().num_generated_tokens
    page.button("Regenerate").click()
    wait_until(lambda: served.engine.stats().num_generated_tokens > told and served.engine.num_running == 0)
    page.wait_for("First token after", NOTE)
    page.button("Undo").click()
    wait_until(lambda: page.find(FIELD).get_attribute("value") == "Hello **there** 你好")
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .bot") == []


def test_what_a_model_says_is_never_run_and_nothing_is_asked_elsewhere(page: Browser, url: str) -> None:
    page.asked_outside(url)
    evil = (
        "<img src=x onerror=document.title='run'> <script>document.title='run'</script> ![](http://127.0.0.1:9/x.png)"
    )
    say(page, f"{evil} $$x^2$$")
    page.wait_for("First token after", NOTE)
    assert "<script>" in page.text(ANSWER)
    assert page.run("return document.title") != "run"
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .message img[src^='http']") == []
    assert page.driver.find_elements(By.CSS_SELECTOR, f"{ANSWER} .katex")
    assert page.asked_outside(url) == set()


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
    wait_until(lambda: served.engine.num_running == 0)
    said = page.text(f"{ANSWER} .bot")
    assert 0 < said.count("0123456789") < 60
    say(page, "next")
    page.wait_for("First token after", NOTE)
    assert "0123456789" in page.text(ANSWER)


def test_enter_within_an_input_method_does_not_send(page: Browser) -> None:
    field = page.find(FIELD)
    field.send_keys("nihao")
    event = "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', isComposing: {}, bubbles: true}}))"
    page.run(event.format("true"), field)
    time.sleep(1)
    assert field.get_attribute("value") == "nihao"
    assert page.text(f"{ANSWER} .user") == ""
    page.run(event.format("false"), field)
    page.wait_for("nihao", f"{ANSWER} .user")


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


def test_on_a_phone(url: str) -> None:
    with browser(390, 800) as phone:
        phone.open(url)
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
    program = (
        "import sys, time; from pathlib import Path; from tests.ray_apps.serve.web.test_page import Served\n"
        "print(Served(Path(sys.argv[1])).start(), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "votes.jsonl")]
    with browser() as window, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        window.open(server.stdout.readline().strip())
        say(window, "0123456789 " * 100)
        window.wait_for("0123456789", f"{ANSWER} .bot")
        server.kill()
        window.wait_for("Connection to the server was lost", seconds=30)
