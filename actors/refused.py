"""Errors that an actor's method gives as its answer instead of raising them.

What a method raises Ray writes out with all its frames, twice, which takes the actor's loop longer than to accept a
batch. A region that refuses, because it has no lease or its disk is full, is asked again by every client, and must not
be kept by that from what would end it. So what is refused often comes back as a value; whoever calls sees the
exception all the same (actors/ray_calls.py).
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from engine.spool.errors import SpoolError


@dataclass(frozen=True, slots=True)
class Refused:
    """The method has raised this."""

    error: Exception


Method = Callable[..., Awaitable[Any]]


def refusing(method: Method) -> Method:
    """A method of an actor that answers with Refused what it refuses: ConnectionError (RegionAway and the like) and
    SpoolError. Anything else is a fault, and raised with its frames."""

    @functools.wraps(method)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except (ConnectionError, SpoolError) as error:
            return Refused(error)  # its frames are not packed

    return answer


def unwrapped(answer: Any) -> Any:
    """The answer. Raises what it refuses."""
    if isinstance(answer, Refused):
        raise answer.error
    return answer
