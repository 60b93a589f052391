"""Small dense numbers for names: the scheduler knows numbers only."""


class Numbering:
    """A bijection between names of a fixed set (pools, netblocks) and numbers, which they keep."""

    __slots__ = ("_names", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def number(self, name: str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self._names)
            self._names.append(name)
        return found

    def name(self, number: int) -> str:
        return self._names[number]

    def __len__(self) -> int:
        return len(self._names)


class HeldNumbers:
    """Numbers for names that come and go (sites, tenants, campaigns): a name has one while somebody holds it.

    A number that nobody holds any more is given to the next new name, so they stay as dense as what is in use. Who
    keeps a number beyond a call must hold it.
    """

    __slots__ = ("_free", "_holds", "_names", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str | None] = []
        self._holds: list[int] = []
        self._free: list[int] = []

    def hold(self, name: str) -> int:
        """The name's number; `release` it as often as it was held."""
        number = self._numbers.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._names[number] = name
            else:
                number = len(self._names)
                self._names.append(name)
                self._holds.append(0)
            self._numbers[name] = number
        self._holds[number] += 1
        return number

    def release(self, number: int) -> bool:
        """Returns whether nobody holds the number now: it may be another name's from here on."""
        name = self._names[number]
        if name is None:
            raise KeyError(f"number {number} is not held")
        self._holds[number] -= 1
        if self._holds[number]:
            return False
        del self._numbers[name]
        self._names[number] = None
        self._free.append(number)
        return True

    def number(self, name: str) -> int:
        """KeyError if nobody holds the name."""
        return self._numbers[name]

    def name(self, number: int) -> str:
        """KeyError if nobody holds the number."""
        name = self._names[number] if 0 <= number < len(self._names) else None
        if name is None:
            raise KeyError(f"number {number} is not held")
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)
