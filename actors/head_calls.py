"""Calls that Ray's head has to answer: they block until it does, a minute and longer if it is away.

Each runs in a thread of its own, so that the loop of whoever asks goes on: a region that starts a pool goes on sending
over its other pools, and Fleet goes on beating. One call per name at a time; who asks again meanwhile waits for the
same. Threads are daemons: no process waits for the head to end.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

MOST = 256  # names at a time; a fleet's actors are fewer


class HeadSilent(TimeoutError):
    """No answer of the head; an actor that was to be looked up has not been asked."""


class HeadCalls:
    """See the module docstring. From any thread, for any loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Any]] = {}

    async def run(self, name: str, ask: Callable[[], Any], timeout_s: float) -> Any:
        """What `ask` returns or raises. HeadSilent: no answer yet, it is still waited for; ask again.
        ConnectionError: too many calls wait already."""
        future = self._begin(name, ask)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            if future.done():
                raise
            raise HeadSilent(f"{name}: the head of Ray gave no answer within {timeout_s:g} s") from None

    def waiting(self) -> int:
        """Calls without an answer."""
        with self._lock:
            return len(self._pending)

    def _begin(self, name: str, ask: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if name in self._pending:
                return self._pending[name]
            if len(self._pending) >= self._most:
                raise ConnectionError(f"{name}: {self._most} calls wait for the head of Ray already")
            future = self._pending[name] = Future()
        threading.Thread(target=self._run, args=(name, ask, future), name="head-call", daemon=True).start()
        return future

    def _run(self, name: str, ask: Callable[[], Any], future: Future[Any]) -> None:
        try:
            answer = ask()
        except BaseException as error:  # noqa: BLE001 - the waiter's, whatever it is
            self._forget(name)
            future.set_exception(error)
        else:
            self._forget(name)
            future.set_result(answer)

    def _forget(self, name: str) -> None:
        with self._lock:
            del self._pending[name]
