"""Calls of Ray's actors, and of Ray's head.

Errors of a call come out as the built-in ones that the engine knows: ConnectionError (the actor is away, the outcome
unknown), TimeoutError, or what the method itself raised.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from actors.head_calls import HeadCalls
from actors.names import NAMESPACE
from actors.ports import ActorDied
from actors.refused import unwrapped

CALL_DEADLINE_S = 30.0
HEAD_DEADLINE_S = 60.0

_head = HeadCalls()


async def call(handle: Any, method: str, *args: Any, timeout_s: float = CALL_DEADLINE_S) -> Any:
    """Call an actor's method. ConnectionError: the actor is away and the outcome unknown.

    An exception raised by the method itself comes out as it was raised there.
    """
    try:
        async with asyncio.timeout(timeout_s):
            answer = await getattr(handle, method).remote(*args)
    except ActorDiedError as error:
        raise ActorDied(f"{method}: {error}") from error
    except RayActorError as error:
        raise ConnectionError(f"{method}: {error}") from error
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)) from error
    except TimeoutError:
        raise TimeoutError(f"{method}: no answer within {timeout_s} s") from None
    except RayError as error:
        raise ConnectionError(f"{method}: {error}") from error
    return unwrapped(answer)


async def ask_head(name: str, ask: Callable[[], Any], *, timeout_s: float = HEAD_DEADLINE_S) -> Any:
    """Have Ray's head answer a call that blocks until it does. TimeoutError (HeadSilent), ConnectionError: it gives
    none (yet).

    What Ray raises for that differs by call and by how long the head has been away.
    """
    try:
        return await _head.run(name, ask, timeout_s)
    except RayError as error:
        raise ConnectionError(f"{name}: the head of Ray: {error}") from error


class NamedActor:
    """An actor by its name: looked up at first use, and again after the one that had the name is dead for good."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None

    async def call(self, method: str, *args: Any, timeout_s: float = CALL_DEADLINE_S) -> Any:
        if self._handle is None:
            try:
                self._handle = await ask_head(f"look up {self._name}", self._look_up, timeout_s=timeout_s)
            except ValueError as error:
                raise ActorDied(f"no actor {self._name}") from error
        try:
            return await call(self._handle, method, *args, timeout_s=timeout_s)
        except ActorDied:
            self._handle = None
            raise

    async def end(self) -> None:
        """Have its process killed, whatever it does, and made again under the same handle, as far as its restarts go.
        Ray's node kills one that does not end by itself within 5 s. ConnectionError: it has not been called yet, or
        Ray's head, which sees to that, does not answer."""
        handle = self._handle
        if handle is None:
            raise ConnectionError(f"{self._name} has not been called yet")
        await ask_head(f"end {self._name}", lambda: ray.kill(handle, no_restart=False))

    def _look_up(self) -> Any:
        return ray.get_actor(self._name, namespace=NAMESPACE)

    async def ask(self, method: str, *args: Any, timeout_s: float = CALL_DEADLINE_S) -> Any:
        """Call a method that changes nothing. If its actor has died (`down` and `up` make another), whoever has the
        name now is asked."""
        try:
            return await self.call(method, *args, timeout_s=timeout_s)
        except ActorDied:
            return await self.call(method, *args, timeout_s=timeout_s)
