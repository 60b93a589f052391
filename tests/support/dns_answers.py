"""A resolver whose answers are written by the test."""

import asyncio

from engine.routing.answers import AddressAnswer, MxAnswer, NameAnswer, Status, TextAnswer, TlsaAnswer


class FakeResolver:
    """`mx_of` and `addresses_of` by name; what is missing there does not exist. `asked` has each question."""

    def __init__(self) -> None:
        self.mx_of: dict[str, MxAnswer] = {}
        self.v4_of: dict[str, AddressAnswer] = {}
        self.v6_of: dict[str, AddressAnswer] = {}
        self.tlsa_of: dict[str, TlsaAnswer] = {}
        self.alias_of: dict[str, NameAnswer] = {}
        self.text_of: dict[str, TextAnswer] = {}
        self.asked: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None

    def set_mx(self, domain: str, *hosts: tuple[int, str], ttl_s: float = 300.0) -> None:
        self.mx_of[domain] = MxAnswer(Status.FOUND, hosts, ttl_s)

    def set_a(self, host: str, *addresses: str, ttl_s: float = 300.0) -> None:
        self.v4_of[host] = AddressAnswer(Status.FOUND, addresses, ttl_s)

    def set_aaaa(self, host: str, *addresses: str, ttl_s: float = 300.0) -> None:
        self.v6_of[host] = AddressAnswer(Status.FOUND, addresses, ttl_s)

    async def mx(self, domain: str) -> MxAnswer:
        self.asked.append(("MX", domain))
        if self.gate is not None:
            await self.gate.wait()
        return self.mx_of.get(domain, MxAnswer(Status.MISSING, ttl_s=60.0, reason="no such domain"))

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer:
        self.asked.append(("AAAA" if ipv6 else "A", host))
        if self.gate is not None:
            await self.gate.wait()
        table = self.v6_of if ipv6 else self.v4_of
        return table.get(host, AddressAnswer(Status.EMPTY, ttl_s=60.0, reason="no records"))

    async def tlsa(self, host: str, *, port: int) -> TlsaAnswer:
        self.asked.append(("TLSA", host))
        return self.tlsa_of.get(
            f"_{port}._tcp.{host}", TlsaAnswer(Status.MISSING, ttl_s=60.0, reason="no such name")
        )

    async def alias(self, name: str) -> NameAnswer:
        self.asked.append(("CNAME", name))
        return self.alias_of.get(name, NameAnswer(Status.EMPTY, ttl_s=60.0, reason="no records"))

    async def text(self, name: str) -> TextAnswer:
        self.asked.append(("TXT", name))
        return self.text_of.get(name, TextAnswer(Status.MISSING, ttl_s=60.0, reason="no such name"))

    async def reverse(self, address: str) -> NameAnswer:
        self.asked.append(("PTR", address))
        return NameAnswer(Status.MISSING, ttl_s=60.0, reason="no such name")
