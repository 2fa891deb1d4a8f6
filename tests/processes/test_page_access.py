"""The page for those who use a keyboard or hear it, and when things end: WCAG AA by axe-core,
focus, announcements, reloads, a server that is gone."""

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from megainfer.frontend.serving_options import ServingOptions
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import Abort, Submit
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.browser import DESKTOP, PHONE, Browser, browsing, needs_browser
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    RunningServer,
    byte_level_backend,
    endless,
    silent,
    speaking,
)

pytestmark = needs_browser

TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
(END,) = TOKENIZER.encode("<|im_end|>")


def says(server: RunningServer, text: str) -> None:
    server.node.script = speaking(*TOKENIZER.encode(text), END)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER, syntax=SyntaxOptions(reasoning_parser="qwen3")) as server:
        yield server


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    says(running, "Hello you")
    while not running.node.heard.empty():
        running.node.heard.get_nowait()
    return running


@pytest.fixture
def page(tab: Browser, server: RunningServer) -> Iterator[Browser]:
    """Freshly loaded, with nothing said."""
    tab.resize(DESKTOP)
    tab.prefer("light")
    tab.driver.get(server.url)
    if tab.find("#clear").is_displayed():
        tab.click("#clear")
    tab.until(lambda: tab.text("#status") == "serving", "no state came")
    yield tab
    assert tab.complaints() == []


def press(page: Browser, *keys: str) -> None:
    ActionChains(page.driver).send_keys(*keys).perform()


def focused(page: Browser) -> str:
    return page.run("return document.activeElement.id")


def ask(page: Browser, text: str = "Hi") -> None:
    page.find("#prompt").send_keys(text, Keys.ENTER)


def answered(page: Browser, number: int = 1) -> None:
    page.until(lambda: len(page.all(".assistant:not(.busy)")) == number, f"{number} answers")


# --- by the keyboard ------------------------------------------------------------------------------


def test_stopping_by_keyboard_leaves_the_focus_where_one_writes_on(
    page: Browser, server: RunningServer
) -> None:
    server.node.script = endless(TOKENIZER.encode("x")[0])
    ask(page)
    page.until(lambda: page.text(".assistant .markdown") == "x", "no text came")
    page.run("document.getElementById('stop').focus()")
    press(page, Keys.ENTER)
    answered(page)
    assert focused(page) == "prompt"
    server.node.expect(Abort)
    says(server, "Hello you")
    press(page, "More", Keys.ENTER)
    answered(page, 2)


def test_escape_stops_an_answer_and_closes_the_settings(
    page: Browser, server: RunningServer
) -> None:
    server.node.script = silent
    ask(page)
    page.until(lambda: page.find("#stop").is_displayed(), "nothing to stop")
    server.node.expect(Submit)
    press(page, Keys.ESCAPE)
    answered(page)
    server.node.expect(Abort)
    assert page.text(".figures") == "stopped"
    assert focused(page) == "prompt"
    page.click("#open-settings")
    page.click("[name=temperature]")
    press(page, Keys.ESCAPE)
    assert not page.find("#settings").is_displayed()
    assert focused(page) == "open-settings"


def test_the_focus_is_handed_on_by_buttons_that_vanish(
    page: Browser, server: RunningServer
) -> None:
    for action, left in (
        ("document.querySelector('.opening button')", "prompt"),
        ("document.querySelector('.again')", "prompt"),
        ("document.getElementById('clear')", "prompt"),
    ):
        page.run(f"{action}.focus()")
        press(page, Keys.ENTER)
        page.until(lambda: page.find("#send").is_displayed(), "it goes on")
        page.until(lambda left=left: focused(page) == left, f"{action} lost the focus")
    page.find("#prompt").send_keys("Hi")
    page.run("document.getElementById('send').focus()")
    server.node.script = silent
    press(page, Keys.ENTER)
    page.until(lambda: focused(page) == "stop", "send lost the focus")
    press(page, Keys.ESCAPE)
    answered(page)


def test_the_tabs_of_a_phone_go_by_arrows(page: Browser) -> None:
    page.resize(PHONE)
    page.run("document.getElementById('tab-chat').focus()")
    press(page, Keys.ARROW_RIGHT)
    assert focused(page) == "tab-live"
    assert page.find("#live").is_displayed()
    press(page, Keys.HOME)
    assert focused(page) == "tab-chat"
    assert page.find("#chat").is_displayed()


# --- by ear ---------------------------------------------------------------------------------------


def test_answers_are_announced_once_they_are_whole(page: Browser, server: RunningServer) -> None:
    page.run(
        """
        const said = document.getElementById("said");
        window.heard = [];
        new MutationObserver(() => window.heard.push(said.textContent)).observe(
            said, {childList: true, characterData: true, subtree: true})"""
    )
    assert page.find("#said").get_attribute("aria-live") == "polite"
    says(server, "<think>Hm.</think>**Hello** you")
    ask(page)
    answered(page)
    assert page.run("return window.heard") == ["The model answers.", "Hello you"]
    box = page.find("#said").rect
    assert (box["width"], box["height"]) == (1, 1), "it is to be heard, not seen"
    server.node.script = endless(TOKENIZER.encode("x")[0])
    ask(page)
    page.until(lambda: page.all(".assistant .markdown")[1].text == "x", "no text came")
    press(page, Keys.ESCAPE)
    answered(page, 2)
    assert page.run("return window.heard")[2:] == ["The model answers.", "Stopped. x"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    page: Browser, server: RunningServer, scheme: str, size: tuple[int, int]
) -> None:
    page.resize(size)
    page.prefer(scheme)
    answer = "# Title\n\nA **bold** word, `code`, [link](https://a.example/).\n\n> quoted\n\n- one"
    says(server, f"<think>Hm.</think>{answer}\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx\n```")
    ask(page)
    answered(page)
    page.click("#open-settings")
    ask(page, "a")
    answered(page, 2)
    page.run("document.querySelector('.reasoning').open = true")
    if size == PHONE:
        page.click("#tab-live")
        assert page.violations() == []
        page.click("#tab-chat")
    page.run("document.getElementById('prompt').value = 'x'.repeat(2000)")  # beyond the context
    ask(page)
    answered(page, 3)
    assert page.find(".problem:not([hidden])").is_displayed()
    assert page.violations() == []
    page.complaints()  # of the status 400


def test_axe_finds_nothing_before_anything_is_said_and_finds_what_is_wrong(page: Browser) -> None:
    assert page.violations() == []
    page.run("document.documentElement.style.setProperty('--soft', '#b0aaa0')")
    assert any(found.startswith("color-contrast: ") for found in page.violations())


def test_axe_finds_nothing_in_the_question_for_a_key(tab: Browser) -> None:
    with RunningServer(TOKENIZER, options=ServingOptions(api_keys=("k",))) as server:
        tab.driver.get(server.url)
        tab.until(lambda: tab.find("#key-dialog").is_displayed(), "no question")
        tab.find("#key").send_keys("wrong", Keys.ENTER)
        tab.until(lambda: "isn’t one of" in tab.text("#key-reason"), "no reason")
        assert tab.violations() == []
        tab.driver.get("about:blank")
    tab.complaints()


# --- what stays, and what doesn't -----------------------------------------------------------------


def test_a_reload_keeps_the_talk_and_the_talk_goes_on(page: Browser, server: RunningServer) -> None:
    says(server, "<think>Hm.</think>**Hello** you")
    ask(page, "First?")
    answered(page)
    figures = page.text(".figures")
    server.node.script = endless(TOKENIZER.encode("x")[0])
    ask(page, "Second?")
    page.until(lambda: page.all(".assistant .markdown")[1].text == "x", "no text came")
    page.driver.refresh()
    answered(page, 2)
    assert [message.text for message in page.all(".user")] == ["First?", "Second?"]
    assert [message.text for message in page.all(".assistant .markdown")] == ["Hello you", "x"]
    assert page.find(".markdown strong").text == "Hello"
    first, second = (element.text for element in page.all(".figures"))
    assert first == figures
    assert second.startswith("broke off")
    assert page.run("return document.querySelector('.reasoning pre').textContent") == "Hm."
    says(server, "Hello you")
    while not server.node.heard.empty():
        server.node.heard.get_nowait()
    ask(page, "Third?")
    answered(page, 3)
    prompt = TOKENIZER.decode(server.node.expect(Submit).prompt, skip_special_tokens=False)
    for said in ("user\nFirst?", "assistant\n**Hello** you", "user\nSecond?", "assistant\nx"):
        assert f"{said}<|im_end|>" in prompt
    page.click("#clear")
    page.driver.refresh()
    assert page.all(".message") == []


def test_what_was_shown_goes_when_the_server_is_gone(tab: Browser) -> None:
    with RunningServer(TOKENIZER) as server:
        tab.resize(DESKTOP)
        tab.driver.get(server.url)
        tab.until(lambda: tab.text("[data-figure=running]") == "0", "no figures")
    tab.until(lambda: tab.text("#status") == "no connection", "it was not noticed")
    assert {figure.text for figure in tab.all("[data-figure]")} == {"–"}
    tab.driver.get("about:blank")
    tab.complaints()


def test_the_top_label_of_a_chart_is_whole(page: Browser) -> None:
    script = """
        const [most, done] = arguments;
        import("./static/curves.js").then(({Curves}) => {
            const drawn = [], draw = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
                drawn.push(y);
                draw.call(this, text, x, y);
            };
            const curves = new Curves();
            const sample = {at: 1, generated: most, prompt: 1, firstMean: most, nextMean: most,
                nextHigh: most, running: most, waiting: 0, kv: 0.99, attentionBusy: 1,
                expertBusy: 1};
            curves.show({samples: [sample], at: 1, seconds: 30});
            CanvasRenderingContext2D.prototype.fillText = draw;
            for (const chart of curves.charts) chart.root.remove();
            done(drawn);
        })"""
    for most in (1, 9.5, 10, 19.9, 20, 49, 50, 99, 100, 101):
        heights = page.driver.execute_async_script(script, most)
        assert len(heights) > 5
        assert min(heights) >= 6, "half of eleven pixels, and the canvas ends"
