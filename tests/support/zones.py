"""A resolver over records written as text, one a line: `name TYPE value`."""

import ipaddress
from collections import defaultdict

from engine.routing.answers import AddressAnswer, MxAnswer, NameAnswer, Status, TextAnswer, TlsaAnswer


class ZoneResolver:
    """`name FAIL -` makes every question for a name fail. `asked` has each question."""

    def __init__(self, text: str) -> None:
        self._records: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._names: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        for line in filter(None, map(str.strip, text.splitlines())):
            name, kind, value = line.split(maxsplit=2)
            self._names.add(name)
            self._records[name, kind].append(value)

    def _find(self, kind: str, name: str) -> tuple[Status, list[str]]:
        self.asked.append((kind, name))
        if (name, "FAIL") in self._records:
            return Status.FAILED, []
        if name not in self._names:
            return Status.MISSING, []
        found = self._records.get((name, kind), [])
        return (Status.FOUND if found else Status.EMPTY), found

    async def mx(self, domain: str) -> MxAnswer:
        status, found = self._find("MX", domain)
        pairs = (value.split() for value in found)
        return MxAnswer(
            status, tuple((int(pair[0]), pair[1].rstrip(".")) for pair in pairs), reason=status.value
        )

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer:
        status, found = self._find("AAAA" if ipv6 else "A", host)
        return AddressAnswer(status, tuple(found), reason=status.value)

    async def text(self, name: str) -> TextAnswer:
        status, found = self._find("TXT", name)
        return TextAnswer(status, tuple(found), reason=status.value)

    async def reverse(self, address: str) -> NameAnswer:
        status, found = self._find("PTR", ipaddress.ip_address(address).reverse_pointer)
        return NameAnswer(status, tuple(found), reason=status.value)

    async def alias(self, name: str) -> NameAnswer:
        status, found = self._find("CNAME", name)
        return NameAnswer(status, tuple(found), reason=status.value)

    async def tlsa(self, host: str, *, port: int) -> TlsaAnswer:
        return TlsaAnswer(Status.MISSING)
