"""The questions of one examination: each is asked once, and only so many at a time.

Nothing is kept beyond the examination; the bound of the memory is the number of questions that it asks.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.routing.answers import AddressAnswer, MxAnswer, NameAnswer, RecordResolver, Status, TextAnswer

AT_ONCE = 20
T = TypeVar("T")


class Questions:
    """A RecordResolver's answers, remembered."""

    def __init__(self, resolver: RecordResolver) -> None:
        self._resolver = resolver
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._asked: dict[tuple[str, ...], asyncio.Task[Any]] = {}

    async def text(self, name: str) -> TextAnswer:
        return await self._once(("text", name), self._resolver.text(name))

    async def mx(self, domain: str) -> MxAnswer:
        return await self._once(("mx", domain), self._resolver.mx(domain))

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer:
        return await self._once(("addresses", host, str(ipv6)), self._resolver.addresses(host, ipv6=ipv6))

    async def reverse(self, address: str) -> NameAnswer:
        return await self._once(("reverse", address), self._resolver.reverse(address))

    async def alias(self, name: str) -> NameAnswer:
        return await self._once(("alias", name), self._resolver.alias(name))

    async def all_addresses(self, host: str) -> AddressAnswer:
        """IPv4 and IPv6 addresses; FAILED if one of the two questions failed, and nothing else was found."""
        v4, v6 = await asyncio.gather(self.addresses(host, ipv6=False), self.addresses(host, ipv6=True))
        found = v4.addresses + v6.addresses
        if found:
            return AddressAnswer(Status.FOUND, found)
        return next((answer for answer in (v4, v6) if answer.status is Status.FAILED), v4)

    async def _once(self, key: tuple[str, ...], question: Coroutine[Any, Any, T]) -> T:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._in_turn(question))
        else:
            question.close()
        answer: T = await task
        return answer

    async def _in_turn(self, question: Coroutine[Any, Any, T]) -> T:
        async with self._slots:
            return await question
