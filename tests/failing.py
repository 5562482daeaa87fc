"""Says what fails as soon as it does: a run that breaks off has no summary, and the first cause is wanted.

A plugin of pytest, in the process that reports.
"""

from __future__ import annotations

import pytest

WORDS_MAX = 300


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failing(config))


class Failing:
    """One line for each failure or error."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._tell(f"{report.when} of {report.nodeid}: {cause(report)}")

    def _tell(self, line: str) -> None:
        terminal = self._plugins.get_plugin("terminalreporter")
        assert terminal is not None
        terminal.write_line(f"\nFAILS {line}")


def cause(report: pytest.TestReport) -> str:
    """Why it failed, on one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    words = crash.message if crash is not None else report.longreprtext.strip().rpartition("\n")[2]
    return " ".join(words.split())[:WORDS_MAX]
