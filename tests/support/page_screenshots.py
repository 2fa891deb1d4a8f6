"""The pictures of docs/page.md, of a server that runs.

    python -m tests.support.page_screenshots URL FOLDER

Other clients keep it busy meanwhile, so that there is something to see.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.browser import PHONE, Browser, browsing

QUESTIONS = (
    "Tell me a long story about a lighthouse keeper.",
    "Explain how rivers form.",
    "Write an essay about bread.",
    "Describe a walk through a forest in autumn.",
)
DESKTOP = (1360, 1250)
CURVE_SECONDS = 45.0  # of traffic, so that the curves are curves
SETTLE_SECONDS = 2.5  # two looks of the live view


def main(url: str, folder: Path) -> None:
    with traffic(url), browsing(DESKTOP) as page:
        page.driver.get(url)
        began = time.monotonic()
        converse(page)
        time.sleep(max(0.0, CURVE_SECONDS - (time.monotonic() - began)))
        page.click("#open-settings")
        for scheme in ("dark", "light"):
            page.prefer(scheme)
            shoot(page, folder / f"page-{scheme}.png")
        page.click("#open-settings")
        page.resize(PHONE, pixel_ratio=2)
        shoot(page, folder / "page-phone-chat.png")
        page.click("#tab-live")
        scroll_to(page, "#nodes")
        page.click('[data-steps="1"]')
        shoot(page, folder / "page-phone-live.png")


def converse(page: Browser) -> None:
    page.click("#open-settings")
    for name, value in (("temperature", "0.2"), ("max_tokens", "90"), ("seed", "7")):
        page.find(f"[name={name}]").send_keys(value)
    page.click("#open-settings")
    for question in ("Why is the sky blue?", "Now as a list of three facts, please."):
        page.find("#prompt").send_keys(question)
        page.click("#send")
        page.until(lambda: page.find("#send").is_displayed(), "no whole answer")


def scroll_to(page: Browser, selector: str) -> None:
    page.run("document.querySelector(arguments[0]).scrollIntoView()", selector)


def shoot(page: Browser, path: Path) -> None:
    time.sleep(SETTLE_SECONDS)
    page.driver.save_screenshot(str(path))
    print(path, path.stat().st_size)


@contextmanager
def traffic(url: str) -> Iterator[None]:
    enough = threading.Event()
    clients = [
        threading.Thread(target=chat_on, args=(url, question, enough)) for question in QUESTIONS
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        enough.set()
        for client in clients:
            client.join()


def chat_on(url: str, question: str, enough: threading.Event) -> None:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 120}
    while not enough.is_set():
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
