"""A real browser: headless Chromium, driven from outside."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

# All that it does by itself, and would have to be let out for, is off.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go to an address."""
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """What a CSS selector finds, once it is there and can be seen."""
        waiting = WebDriverWait(self.driver, 60)
        found: WebElement = waiting.until(
            lambda driver: next(
                (one for one in driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()), None
            )
        )
        return found

    def button(self, text: str) -> WebElement:
        """The button with that text, once it can be seen."""

        def seen(driver: Any) -> WebElement | None:
            buttons = driver.find_elements(By.TAG_NAME, "button")
            return next((one for one in buttons if one.is_displayed() and one.text.strip() == text), None)

        found: WebElement = WebDriverWait(self.driver, 60).until(seen)
        return found

    def wait_for(self, text: str, selector: str = "body", seconds: float = 60) -> None:
        """Until a text is on the page, or in what a CSS selector finds."""
        WebDriverWait(self.driver, seconds).until(lambda _: text in self.text(selector), f"{text!r} in {selector}")

    def text(self, selector: str) -> str:
        """What is to be read there."""
        return "\n".join(one.text for one in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def asked_outside(self, url: str) -> set[str]:
        """Addresses elsewhere that the page has asked for since it was looked at last."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = (
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        )
        return {one for one in asked if not one.startswith((url, "data:", "blob:", "chrome:", "about:"))}

    def save(self, path: Path) -> None:
        """A picture of the window."""
        self.driver.save_screenshot(str(path))


@contextmanager
def browser(width: int = 1100, height: int = 900) -> Iterator[Browser]:
    """A window of so many pixels; a phone's if it is narrow."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--window-size={max(width, 500)},{height}"):
        options.add_argument(flag)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    if width < 500:
        metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(window)
    finally:
        window.quit()
