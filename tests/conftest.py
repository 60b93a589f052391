"""Ray reads its settings when it is imported, and some module of the tests may import it while they are collected.

`make test` runs the tests in two processes (pytest-xdist), module by module, because a module's tests share fixtures.
"""

import os

import pytest

from actors.environment import ONLY_LOOPBACK, SETTINGS
from engine.ops import free_port

os.environ.update(SETTINGS)
os.environ.pop(
    "COLUMNS", None
)  # readline in the process that starts xdist's workers has made it: no screen is meant
os.environ[ONLY_LOOPBACK] = "0"

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
FLEETS = "tests/ray/"
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def pytest_configure() -> None:
    """Each process has ports of its own, so that none finds one free that another is about to listen on."""
    first, last = free_port.FIRST, free_port.LAST
    share = (last - first + 1) // WORKERS
    free_port.FIRST = first + WORKER * share
    free_port.LAST = free_port.FIRST + share - 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fleets first: they take longest, and mostly wait."""
    if WORKERS > 1:
        items.sort(key=lambda item: not item.nodeid.startswith(FLEETS))
