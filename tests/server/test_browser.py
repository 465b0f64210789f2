"""The built-in pages in a real browser (Debian's chromium and chromium-driver), as a person uses them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from herd.errors import ProviderError
from herd.providers.base import Failed
from herd.server.keys import Keys, create
from server.conftest import Running
from server.fake_pool import FakePool, FakeService, Wait, words

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install herd-llama[dev])")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed here"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium leaves the driver's output open
]
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER, log_output=os.devnull))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Iterator[Callable[[str], Page]]:
    """Opens an address; at the end nothing may have gone wrong that a page does not say."""
    browser.get_log("browser")
    yield lambda url: Page(browser, url)
    refused = ("favicon", "Failed to load resource")  # a browser notes every answer above 399
    said = [each for each in browser.get_log("browser") if not any(word in each["message"] for word in refused)]
    assert not said, said


class Page:
    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(lambda _: condition())

    def ask(self, text: str) -> None:
        self.until(lambda: self["model"].get_attribute("value"))
        self["text"].send_keys(text)
        self["send"].click()


def test_a_chat_goes_to_and_fro_with_its_whole_conversation(serve: Any, page: Any) -> None:
    service = FakeService(script=words("Good day to you."))
    shown = page(serve(FakePool(service)).url)
    shown.ask("Hello")
    shown.until(lambda: "Good day to you." in shown["turns"].text and shown["send"].is_enabled())
    shown["text"].send_keys("And then?\n")  # Enter sends
    shown.until(lambda: len(service.asked) == 2 and shown["send"].is_enabled())
    assert [message.text for message in service.asked[1].messages] == ["Hello", "Good day to you.", "And then?"]
    assert "tokens" in shown["speed"].text and shown["text"].get_attribute("value") == ""


def test_what_a_model_says_is_text_and_never_markup(serve: Any, page: Any) -> None:
    said = "<img src=x onerror=\"document.title='hurt'\"> <b>bold</b>"
    shown = page(serve(FakePool(FakeService(script=words(said)))).url)
    shown.ask("Say it")
    shown.until(lambda: said in shown["turns"].text)
    assert shown.browser.title == "herd" and not shown["turns"].find_elements("css selector", "img, b")


def test_an_answer_can_be_stopped_and_the_server_hears_of_it(serve: Any, page: Any) -> None:
    service = FakeService(script=[*words("One two"), Wait(60), *words("three")])
    shown = page(serve(FakePool(service)).url)
    shown.ask("Count")
    shown.until(lambda: "two" in shown["turns"].text)
    shown["stop"].click()
    shown.until(lambda: service.open == 0 and shown["send"].is_enabled())
    assert "(stopped)" in shown["turns"].text and not shown["problem"].is_displayed()


def test_a_failure_is_told_and_the_question_is_not_lost(serve: Any, page: Any) -> None:
    shown = page(serve(FakePool(FakeService(script=[Failed(ProviderError("The engine has died."))]))).url)
    shown.ask("Why?")
    shown.until(lambda: shown["problem"].is_displayed())
    assert shown["problem"].text and shown["text"].get_attribute("value") == "Why?" and shown["turns"].text == ""


def test_a_server_with_keys_is_used_with_one(serve: Any, page: Any, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret, _ = create(tmp_path / "keys.json", "anna")
    shown = page(serve(FakePool(FakeService(script=words("Yes."))), keys=keys, need_key=True).url)
    shown.until(lambda: "key" in shown["problem"].text)
    shown.browser.find_element("css selector", "details.more summary").click()
    shown["key"].send_keys(secret + "\t")
    shown.ask("May I?")
    shown.until(lambda: "Yes." in shown["turns"].text)


def test_a_plan_follows_the_sliders_and_its_address_can_be_sent_to_somebody(serve: Any, page: Any) -> None:
    running: Running = serve()
    shown = page(running.url + "/plan")
    shown.until(lambda: "Plan for llama-3.1-8b-instruct" in shown["answer"].text)
    before = shown["answer"].text
    from selenium.webdriver.common.keys import Keys as Key

    shown["users"].send_keys(Key.END)
    shown.until(lambda: "10,000" in shown["answer"].text and shown["answer"].text != before)
    again = page(shown.browser.current_url)
    again.until(lambda: "10,000" in again["answer"].text)


def test_an_impossible_plan_says_why(serve: Any, page: Any) -> None:
    shown = page(serve().url + "/plan?model=llama-3.1-8b-instruct&device=h900")
    shown.until(lambda: "Plan for" in shown["answer"].text or shown["problem"].is_displayed())
    assert "Plan for" in shown["answer"].text, "a device that is not known is left out"
