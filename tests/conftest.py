"""What holds for every run of the tests: nobody is skipped or left behind unnoticed."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.forked import offered
from tests.support.processes import adopt_orphans, children_left
from tests.support.skips import may_skip
from tests.support.spread import spread

# Before torch is imported, and for what the tests start. Threads that spin while they wait would
# take the cores from those that they wait for: there are fewer cores than threads here.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# A suite in the background of a script ignores interrupts, and so would the programs of its tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SERVING = ("processes", "clients")
"""Folders of tests that start processes."""
LONGEST = ("test_three_hosts.py",)
"""Files that take a minute and more, and whose names put them at the end, where one worker would
have nothing left to do meanwhile."""

# How long an example takes says more of who else is at work than of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-machine",
        action="store_true",
        help="fail where a test is skipped for want of a compiler, a browser or the like",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order: those that start processes, which often wait, are spread
    evenly among those that only compute, so that the cores are neither idle nor fought over."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in LONGEST)
        items[:] = spread(items, lambda item: item.path, lambda path: path.parent.name in SERVING)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: collections of garbage needn't look at it."""
    gc.freeze()


class SkipWatch:
    """Fails a run in which tests were skipped that shouldn't be; see tests/support/skips.py."""

    def __init__(self, whole_machine: bool) -> None:
        self._whole_machine = whole_machine
        self._unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            assert isinstance(report.longrepr, tuple)
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not may_skip(reason, self._whole_machine):
                self._unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._unexpected:
            terminalreporter.write_line(f"SKIPPED UNEXPECTEDLY {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist report to the process that started them, which has one of its own.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch(config.getoption("--whole-machine")))


@pytest.fixture(scope="session", autouse=True)
def _nobody_is_left_behind() -> Iterator[None]:
    adopt_orphans()
    with offered():
        yield
    left = children_left()
    assert not left, f"tests have left processes behind: {left}"
