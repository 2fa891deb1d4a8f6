"""`megainfer plan --from`: what a running server measures, and what other nodes would give."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from megainfer.errors import ConfigError
from megainfer.planner.live.advice import Advice, advise
from megainfer.planner.live.scrape import Sample, Scrape

ASK_SECONDS = 10.0
PULSE_SECONDS = 1.5
"""Nodes tell their counters once a second."""
LOOK_SECONDS = 0.1
LEAST_SECONDS = 1.0


def plan_from(url: str, key: str | None, seconds: float, as_json: bool) -> None:
    """Print what the nodes' counters of so many seconds say. key: one that opens /metrics.

    Raises ConfigError for fewer seconds than nodes need to count anything, MegaInferError where
    that is no server of ours, or it can't be asked.
    """
    if seconds < LEAST_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}, but nodes tell their counters once a second")
    advice = _advice(lambda: scrape(url, key), seconds)
    if as_json:
        print(json.dumps({**asdict(advice), "lines": [*advice.lines()]}, indent=1))
        return
    for line in advice.lines():
        print(line)


def _advice(look: Callable[[], Scrape], seconds: float) -> Advice:
    first = _fresh(look)
    time.sleep(seconds)  # the time over which the server's counters are to grow
    return advise(first, _fresh(look))


def _fresh(look: Callable[[], Scrape]) -> Scrape:
    """What nodes have told just now, so that two of these are as far apart as what they tell of;
    where they have nothing to do, whatever they told."""
    before = look()
    deadline = time.monotonic() + PULSE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)  # /metrics can't be waited for, only asked again
        if (now := look()).pulse != before.pulse:
            return now
    return before


def scrape(url: str, key: str | None) -> Scrape:
    """The server's /metrics, now. Raises MegaInferError."""
    from prometheus_client.parser import text_string_to_metric_families

    from megainfer.commands.admin_client import ask

    text = ask("GET", url, "/metrics", key, ASK_SECONDS).decode()
    samples = (
        Sample(own.name, own.labels, own.value)
        for family in text_string_to_metric_families(text)
        for own in family.samples
    )
    return Scrape.of(samples, time.monotonic())
