"""Ray reads its settings when it is imported, so they are set here: before any module of this folder is."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Short, because Ray puts sockets below it; ours alone, so that other clusters of this machine are out of reach.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="sf-", dir="/tmp")


@pytest.fixture(scope="session", autouse=True)
def ray_directory() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
