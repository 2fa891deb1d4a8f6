"""The page in a real browser, before a server with both roles and a small random model."""

import re
from collections.abc import Iterator

import httpx
import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.requests import FinishReason
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.browser import DESKTOP, PHONE, Browser, browsing, needs_browser
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    RunningServer,
    byte_level_backend,
    speaking,
    write_tokenizer,
)
from tests.support.served import Served, serving

pytestmark = needs_browser

QUESTION = "The quick brown fox"
CONTEXT = 4096
TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its vocabulary is the tokenizer's, and no token ends an answer."""
    shape = {"vocab_size": 360, "max_position_embeddings": CONTEXT, "eos_token_id": None}
    folder = write_checkpoint("olmoe", "mha", tmp_path_factory.mktemp("model"), **shape)
    write_tokenizer(folder, eos_token=None)
    with serving(str(folder), "--ffn-gpus", "2", "--micro-batches", "2") as served:
        yield served


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(tab: Browser, served: Served) -> Iterator[Browser]:
    """Freshly loaded; whatever its console complains of fails the test."""
    opened(tab, served.url)
    yield tab
    assert tab.complaints() == []


def opened(tab: Browser, url: str) -> None:
    tab.resize(DESKTOP)
    tab.driver.get(url)
    # The page keeps its talk once more as it is left.
    tab.run("sessionStorage.clear(); addEventListener('pagehide', () => sessionStorage.clear())")
    tab.driver.refresh()


def ask(page: Browser, question: str, **settings: object) -> None:
    if not page.find("#settings").is_displayed():
        page.click("#open-settings")
    for name, value in settings.items():
        field = page.find(f"[name={name}]")
        field.clear()
        field.send_keys(str(value))
    page.find("#prompt").send_keys(question)
    page.click("#send")


def ended(page: Browser, number: int = 1) -> str:
    """The text of the latest answer, once there are so many and none is being written."""
    whole = ".assistant:not(.busy)"
    page.until(lambda: len(page.all(whole)) == number, f"{number} whole answers")
    return page.run(
        "return [...document.querySelectorAll('.assistant .markdown')].at(-1).innerText"
    )


def words(text: str) -> str:
    return "".join(text.split())


def load_of(served: Served) -> tuple[int, int]:
    """Requests being answered, and those that hold KV blocks."""
    state = httpx.get(f"{served.url}/page/state").json()
    return state["in_flight"], state["running"]


def test_a_message_is_answered_as_the_api_answers_it(page: Browser, served: Served) -> None:
    ask(page, QUESTION, system="Be brief.", temperature=0, top_k=5, max_tokens=24, seed=1)
    shown = ended(page)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    assert words(shown) == words(answer["choices"][0]["message"]["content"]) != ""
    figures = page.text(".figures")
    assert "first token after" in figures
    assert "24 tokens · " in figures
    assert figures.endswith("tokens/s")


def test_stop_ends_the_request_on_the_server(page: Browser, served: Served) -> None:
    ask(page, QUESTION, max_tokens=CONTEXT - 200)
    page.until(lambda: page.text(".assistant .markdown"), "no text came")
    page.click("#stop")
    assert ended(page)
    assert page.text(".figures").startswith("stopped")
    page.until(lambda: load_of(served) == (0, 0), "the request went on")


def test_a_conversation_goes_on_can_be_repeated_and_cleared(page: Browser) -> None:
    ask(page, QUESTION, temperature=0, max_tokens=8)
    ended(page, 1)
    page.find("#prompt").send_keys("And then?\n")  # Enter sends
    second = ended(page, 2)
    page.all(".again")[1].click()
    assert ended(page, 2) == second  # the same history, and greedy
    assert [message.text for message in page.all(".user")] == [QUESTION, "And then?"]
    page.click("#clear")
    assert page.all(".message") == []


def test_what_is_wrong_is_said_and_the_chat_goes_on(page: Browser) -> None:
    ask(page, QUESTION, max_tokens=2 * CONTEXT)
    ended(page, 1)
    assert str(CONTEXT) in page.text(".problem:not([hidden])")
    ask(page, QUESTION, max_tokens=4, temperature=0)
    assert ended(page, 2)
    # A refused request is of status 400, which the console repeats.
    assert [it for it in page.complaints() if "400 (Bad Request)" not in it] == []


def test_the_live_view_shows_what_has_run(page: Browser) -> None:
    names = "[...document.querySelectorAll('.node h3')].map((name) => name.textContent)"
    nodes = ["attention node 0", "expert node 0", "expert node 1"]
    page.until(lambda: page.run(f"return {names}") == nodes, "the nodes")
    page.run("document.querySelector('#timeline').scrollIntoView()")
    ask(page, QUESTION, max_tokens=CONTEXT - 200)
    for canvas, unit in (("#timeline canvas", "span"), ("#load canvas", "token")):
        page.until(lambda at=canvas, unit=unit: number_before(page, at, unit) > 0, canvas)
        page.until(lambda at=canvas: colours_in(page, at) >= 5, f"{canvas} is blank")
    page.until(lambda: page.text("[data-figure=running]") == "1", "the running request")
    page.until(lambda: page.text("[data-figure=generated]") not in ("–", "0"), "tokens/s")
    page.until(lambda: "experts (T_e)" in page.text("#terms-rows"), "the plan's terms")
    assert page.violations() == []
    page.click("#timeline #pause")
    whole = number_before(page, "#timeline canvas", "span")
    assert "micro-batch" in page.text("#timeline-legend")
    page.click('[data-steps="0.125"]')
    # None at all where nobody happened to work in the middle of a step.
    assert number_before(page, "#timeline canvas", "span") < whole
    # By a script, since the button is gone where the answer has ended meanwhile.
    page.run("document.querySelector('#stop').click()")


def test_nodes_of_a_server_that_is_gone_are_unknown(page: Browser) -> None:
    page.until(lambda: "busy" in page.text(".busy-share"), "no nodes")
    page.run("window.asks = window.fetch; window.fetch = () => Promise.reject(Error('gone'))")
    page.until(lambda: page.text("#status") == "no connection", "it was not noticed")
    assert {share.text for share in page.all(".busy-share")} == {"unknown"}
    assert len(page.all(".node.unknown")) == len(page.all(".node")) == 3
    assert {figure.text for figure in page.all("[data-figure]")} == {"–"}
    assert page.text("#road") == ""
    assert page.violations() == []
    page.run("window.fetch = window.asks")
    page.until(lambda: "busy" in page.text(".busy-share"), "it did not come back")
    assert page.all(".node.unknown") == []


def number_before(page: Browser, canvas: str, unit: str) -> int:
    """The number that a canvas's description gives for its units."""
    label = page.find(canvas).get_attribute("aria-label") or ""
    found = re.search(rf"([\d,]+) {unit}s?\b", label)
    return int(found[1].replace(",", "")) if found else 0


def colours_in(page: Browser, canvas: str) -> int:
    """How many different colours its pixels have."""
    script = """
        const {width, height} = arguments[0];
        const {data} = arguments[0].getContext("2d").getImageData(0, 0, width, height);
        return new Set(new Uint32Array(data.buffer)).size"""
    return int(page.run(script, page.find(canvas)))


def test_nothing_is_wider_than_a_phone(page: Browser) -> None:
    ask(page, "a" * 300, max_tokens=8, temperature=0)
    ended(page)
    page.resize(PHONE)
    for tab in ("chat", "live"):
        page.click(f"#tab-{tab}")
        page.until(lambda tab=tab: page.find(f"#{tab}").is_displayed(), tab)
        wide = """
            return [document.scrollingElement, ...document.querySelectorAll("section, article")]
                .filter((box) => box.scrollWidth > Math.max(box.clientWidth, 1))
                .map((box) => `${box.tagName}#${box.id} ${box.scrollWidth} > ${box.clientWidth}`)"""
        assert page.run(wide) == []
        assert page.run("return document.scrollingElement.scrollWidth") == PHONE[0]


def test_the_live_view_asks_only_while_it_can_be_seen(page: Browser) -> None:
    page.resize(PHONE)
    script = """
        const done = arguments[0];
        import("./static/live.js").then(({Live}) => done(new Live().isSeen()))"""
    for tab, seen in (("chat", False), ("live", True)):
        page.click(f"#tab-{tab}")
        assert page.driver.execute_async_script(script) is seen


def test_a_models_text_never_becomes_html(page: Browser) -> None:
    text = """# Title\n\n<img src=x onerror=alert(1)> **bold** `<b>` [web](https://a.example/x)
[bad](javascript:alert(1))\n\n- one\n  - two\n- three\n\n| a | b |\n|---|---|\n| 1 | *2* |

```html\n<script>alert(1)</script>\n```\n\n> quoted\n\n1. first\n2. second\n\n```py\nopen = 1"""
    script = """
        const [text, done] = arguments;
        import("./static/markdown.js").then(({Markdown}) => {
            const root = document.createElement("div");
            const markdown = new Markdown(root);
            for (let end = 1; end <= text.length; end += 1) markdown.show(text.slice(0, end));
            const tags = [...root.querySelectorAll("*")].map((each) => each.tagName.toLowerCase());
            const links = [...root.querySelectorAll("a")].map((each) => each.href);
            done([tags, links, root.textContent]);
        })"""
    tags, links, shown = page.driver.execute_async_script(script, text)
    assert not {"img", "script", "b"} & set(tags)
    assert {"h3", "strong", "code", "ul", "ol", "table", "blockquote", "pre", "em"} <= set(tags)
    assert tags.count("ul") == 2
    assert links == ["https://a.example/x"]
    for kept in ("<img src=x onerror=alert(1)>", "[bad](javascript:alert(1))", "open = 1"):
        assert kept in shown


def test_reasoning_is_shown_folded(page: Browser) -> None:
    script = """
        const done = arguments[0];
        import("./static/answer.js").then(({Answer}) => {
            const answer = new Answer(() => {});
            for (const delta of [{reasoning: "First"}, {reasoning: " I think."}, {content: "Yes."}])
                answer.take({choices: [{delta, finish_reason: null}]});
            answer.end(false);
            const {open, hidden, textContent} = answer.folded;
            done([open, hidden, textContent, answer.body.textContent]);
        })"""
    shown = page.driver.execute_async_script(script)
    assert shown == [False, False, "ThoughtsFirst I think.", "Yes."]


def test_a_key_is_asked_for_and_kept_in_the_tab(tab: Browser) -> None:
    options = ServingOptions(api_keys=("open-sesame",))
    with RunningServer(TOKENIZER, options=options) as server:
        server.node.script = speaking(*TOKENIZER.encode("quick fox"), finish=FinishReason.LENGTH)
        opened(tab, server.url)
        tab.until(lambda: tab.find("#key-dialog").is_displayed(), "no question")
        tab.click("#key-cancel")
        tab.until(lambda: tab.text("#status") == "locked", "declining did not count")
        tab.driver.refresh()
        for key, dialog_stays in (("wrong", True), ("open-sesame", False)):
            tab.until(lambda: tab.find("#key-dialog").is_displayed(), "no question")
            tab.find("#key").send_keys(key)
            tab.click("#key-dialog .primary")
            if dialog_stays:
                tab.until(lambda: "isn’t one of" in tab.text("#key-reason"), "no reason")
        tab.until(lambda: tab.text("#status") == "serving", "the key was not used")
        assert tab.run("return sessionStorage.getItem('megainfer.key')") == "open-sesame"
        assert tab.run("return localStorage.length + document.cookie.length") == 0
        tab.driver.refresh()
        tab.until(lambda: tab.text("#status") == "serving", "the key was forgotten")
        ask(tab, QUESTION)
        assert ended(tab) == "quick fox"
        tab.driver.get("about:blank")  # or it would ask on when the server has ended
    assert [it for it in tab.complaints() if "401 (Unauthorized)" not in it] == []
