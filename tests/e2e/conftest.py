"""What end-to-end tests share."""

from collections.abc import Iterator

import pytest

from tests.support.host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as running:
        yield running
