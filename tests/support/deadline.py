"""For work that is linear or never ends: what takes hours instead of milliseconds fails after a minute."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deadline() -> Iterator[None]:
    """TimeoutError after a minute, also inside of a regular expression, which looks for signals."""

    def give_up(*_: object) -> None:
        raise TimeoutError("still at it after a minute")

    former = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
