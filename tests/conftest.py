"""Ray reads its settings when it is imported, and some module of the tests may import it while they are collected.

`make test` runs the tests in two processes (pytest-xdist): one begins with those that start a fleet, which mostly wait,
the other takes the rest, module by module.
"""

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from actors.environment import ONLY_LOOPBACK, SETTINGS
from engine.ops import free_port

os.environ.update(SETTINGS)
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return FleetsApart(config, log)


class FleetsApart(LoadScopeScheduling):
    """Fleets one after another in one process; of everything else, what shares a module's fixtures stays together."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::")[0]
        return FLEETS if module.startswith(FLEETS) else module


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fleets first."""
    if WORKERS > 1:
        items.sort(key=lambda item: not item.nodeid.startswith(FLEETS))
