"""The page while nodes are killed, added and drained, and the picture of where experts are."""

import os
import re
import signal
from collections.abc import Iterator

import httpx
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.support.browser import DESKTOP, PHONE, Browser, browsing, needs_browser
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer
from tests.support.served import CONTEXT, Served, serving

pytestmark = needs_browser

CARDS = "return [...document.querySelectorAll('.node h3')].map((name) => name.textContent)"
NODES = ["attention node 0", "attention node 1", "expert node 0", "expert node 1"]
SEEN = """
    window.seen = new Set();
    const card = [...document.querySelectorAll('.node')].find((each) =>
        each.querySelector('h3').textContent === arguments[0]);
    new MutationObserver(() => seen.add(card.dataset.state)).observe(card, {attributes: true});"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Every expert is on two nodes, so that nobody waits for one that died."""
    shape = {"vocab_size": 360, "max_position_embeddings": CONTEXT, "eos_token_id": None}
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"), **shape)
    write_tokenizer(folder, eos_token=None)
    flags = ("--attn-gpus", "2", "--ffn-gpus", "2", "--expert-replicas", "4")
    with serving(str(folder), *flags, "--micro-batches", "2", "--api-servers", "2") as served:
        yield served


@pytest.fixture(scope="module")
def tab(served: Served) -> Iterator[Browser]:
    with browsing() as browser:
        browser.driver.get(served.url)
        yield browser


@pytest.fixture
def page(tab: Browser) -> Iterator[Browser]:
    tab.resize(DESKTOP)
    yield tab
    assert tab.complaints() == []


def ask(page: Browser) -> None:
    """Something that is answered for longer than a test lasts, once the answer has begun."""
    if page.find("#stop").is_displayed():
        page.click("#stop")
    if page.find("#clear").is_displayed():
        page.click("#clear")
    page.find("#prompt").send_keys("The quick brown fox")
    page.click("#send")
    page.until(lambda: written(page) > 20, "no text came")


def kill(page: Browser, served: Served, name: str, title: str) -> None:
    """And wait until the page says that it is back, however late it asks."""
    text = f"{title} is back after"
    before = events(page).count(text)
    os.kill(served.node(name), signal.SIGKILL)
    page.until(lambda: events(page).count(text) > before, f"{title} didn't come back")


def events(page: Browser) -> str:
    return str(page.run("return document.querySelector('#events-list').textContent"))


def card(page: Browser, title: str) -> str:
    (found,) = [node.text for node in page.all(".node") if node.text.startswith(title)]
    return found


def written(page: Browser) -> int:
    return int(page.run("return document.querySelector('.assistant .markdown').textContent.length"))


def test_a_node_is_killed_and_comes_back_while_the_answer_goes_on(
    page: Browser, served: Served
) -> None:
    page.until(lambda: page.run(CARDS) == NODES, "the nodes")
    ask(page)
    page.run(SEEN, "expert node 1")
    for _ in range(3):  # there is a pause before the second and the third start
        kill(page, served, "expert-1", "expert node 1")
    assert {"lost", "returning"} & set(page.run("return [...seen]"))
    page.until(lambda: "restarted 3 times" in card(page, "expert node 1"), "restarts")
    assert "expert node 1 died: killed by SIGKILL" in events(page)
    assert "the others go on without expert node 1" in events(page)
    page.until(lambda: page.text("#status") == "serving", "it is whole")
    so_far = written(page)
    page.until(lambda: written(page) > so_far, "the answer ended")
    assert page.all(".problem:not([hidden])") == []
    assert page.violations() == []


def test_nodes_appear_and_disappear_as_it_is_scaled(page: Browser, served: Served) -> None:
    for experts in (3, 2):
        answer = httpx.post(f"{served.url}/admin/scale", json={"ffn": experts}, timeout=60)
        assert answer.json()["experts"] == list(range(experts))
        names = [*NODES, "expert node 2"] if experts == 3 else NODES
        page.until(lambda names=names: page.run(CARDS) == names, f"{experts} expert nodes")
    page.until(lambda: "expert node 2 has left" in events(page), "it left")
    assert "expert node 2 joined: 2 attention and 3 expert nodes serve" in events(page)


HELD = (
    "return [...document.querySelectorAll('#placement tbody tr')]"
    ".map((row) => row.lastElementChild.textContent)"
)


def test_where_experts_are_is_shown_named_and_tabulated(page: Browser) -> None:
    ask(page)
    page.run("document.querySelector('#placement').scrollIntoView()")
    canvas, note = page.find("#placement canvas"), "#placement-note"
    page.until(lambda: "8 experts on 2 nodes" in page.text(note), "no placement")
    page.until(lambda: re.search(r"busiest node served [\d.]+ times", page.text(note)), "no tokens")
    layers = page.run("return [...document.querySelectorAll('option')].map(({text}) => text)")
    assert [layer.partition(" · ")[0] for layer in layers] == ["layer 0", "layer 1", "layer 2"]
    assert all(re.fullmatch(r"layer \d · \d\.\d\d × the mean", layer) for layer in layers)
    assert canvas.get_attribute("aria-label").startswith(
        "Layer 0: 8 experts on 2 nodes, 8 replicas"
    )
    page.run("arguments[0].focus()", canvas)
    for key, expert in ((Keys.ARROW_RIGHT, 0), (Keys.END, 7), (Keys.ARROW_LEFT, 6)):
        ActionChains(page.driver).send_keys(key).perform()
        told = rf"Expert {expert}: node 0 \(.*\), node 1 \(.*\); [\d.]+ times the mean lately\."
        page.until(lambda told=told: re.fullmatch(told, page.text(note)), told)
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: page.text(note).startswith("Layer 0"), "it stays")
    assert "stopped" not in page.text(".figures")
    page.find("#placement-layer").send_keys(Keys.ARROW_DOWN)
    page.until(lambda: page.text(note).startswith("Layer 1"), "another layer")
    page.click("#placement summary")
    page.until(lambda: len(page.all("#placement tbody tr")) == 2, "no table")
    rows = page.run(HELD)  # at once, since they are made anew each second
    for held in rows:
        assert sorted(int(expert.strip("*°")) for expert in held.split(", ")) == [*range(8)]
    assert page.violations() == []
    page.resize(PHONE)
    page.click("#tab-live")
    assert page.violations() == []
    assert page.run("return document.scrollingElement.scrollWidth") == PHONE[0]
    page.click("#tab-chat")


def test_an_answer_goes_on_when_all_attention_nodes_had_stopped(
    page: Browser, served: Served
) -> None:
    """Which is noticed, and they are killed, a second later."""
    ask(page)
    for node in ("attent-0", "attent-1"):
        os.kill(served.node(node), signal.SIGSTOP)
    page.until(lambda: "attention node 1 hung and was killed" in events(page), "it isn't noticed")
    back = ("attention node 0 is back", "attention node 1 is back")
    page.until(lambda: all(text in events(page) for text in back), "they didn't come back")
    so_far = written(page)
    page.until(lambda: written(page) > so_far or page.all(".figures:not(:empty)"), "no more came")
    assert page.all(".problem:not([hidden])") == []
    assert page.text(".figures") == ""
