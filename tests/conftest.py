"""Ray reads its settings when it is imported, and some module of the tests may import it while they are collected.

`make test` runs the tests in two processes (pytest-xdist): one begins with those that start a fleet, which mostly wait,
the other takes the rest, module by module.
"""

import os

import pytest

from actors.environment import ONLY_LOOPBACK, SETTINGS
from engine.ops import free_port

os.environ.update(SETTINGS)
os.environ[ONLY_LOOPBACK] = "0"

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def pytest_configure() -> None:
    """Each process has ports of its own, so that none finds one free that another is about to listen on."""
    first, last = free_port.FIRST, free_port.LAST
    share = (last - first + 1) // WORKERS
    free_port.FIRST = first + WORKER * share
    free_port.LAST = free_port.FIRST + share - 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fleets one after another, first; of everything else, what shares a module's fixtures stays together."""
    if WORKERS == 1:
        return
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        fleet = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("fleets" if fleet else item.nodeid.split("::")[0]))
