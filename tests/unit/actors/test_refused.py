"""What a region refuses comes out of a call as the exception that it is."""

import asyncio
import pickle
import re
from typing import Any

import pytest

from actors.ray_calls import call
from actors.refused import Refused, refusing
from engine.region.ports import RegionAway, RegionDraining
from engine.spool.errors import SpoolFull


class Region:
    """Raises what it is given, as an actor does; `remote` is Ray's."""

    class _Method:
        def __init__(self, method: Any) -> None:
            self._method = method

        def remote(self, *args: Any) -> Any:
            return self._method(*args)

    def __init__(self) -> None:
        self.accept = self._Method(self._accept)

    @refusing
    async def _accept(self, error: Exception | None) -> bytes:
        if error is not None:
            raise error from KeyError("why")
        return b"receipt"


REFUSALS = [
    RegionAway("no lease"),
    RegionDraining("another takes it"),
    SpoolFull("disk", 1, 2),
    ConnectionRefusedError(111, "refused"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_the_caller_sees_the_exception(error: Exception) -> None:
    answer = asyncio.run(Region().accept.remote(error))
    arrived = pickle.loads(pickle.dumps(answer))  # as over the network
    assert isinstance(arrived, Refused)
    assert (type(arrived.error), str(arrived.error)) == (type(error), str(error))
    assert arrived.error.__traceback__ is None
    with pytest.raises(type(error), match=re.escape(str(error))):
        asyncio.run(call(Region(), "accept", error))


def test_a_receipt_and_a_fault_pass_as_ever() -> None:
    assert asyncio.run(call(Region(), "accept", None)) == b"receipt"
    with pytest.raises(ValueError, match="bad"):
        asyncio.run(call(Region(), "accept", ValueError("bad")))
