"""What is drawn: numbers, quickly, and the times at which processes start."""

import random


class Dice(random.Random):
    """Its `below` is `randrange` without the checks, which took a tenth of the simulation's time."""

    def below(self, limit: int) -> int:
        bits = limit.bit_length()
        number = self.getrandbits(bits)
        while number >= limit:
            number = self.getrandbits(bits)
        return number


class WallClocks:
    """What processes take for the time when they start: more than any before, or, if the clock of the machine has been
    set back meanwhile, less. Never the same twice. `rng`: for what else happens with the clocks."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._taken = {0}

    def read(self) -> int:
        is_back = self.rng.random() < 0.5
        latest = max(self._taken)
        while True:
            now = self.rng.randrange(1, latest + 1000) if is_back else latest + self.rng.randrange(1, 1000)
            if now not in self._taken:
                self._taken.add(now)
                return now
