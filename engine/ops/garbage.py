"""How often the garbage collector runs in a process that handles mail."""

import gc

THRESHOLDS = (10_000, 10, 10)


def collect_seldom() -> None:
    """Once such a process has started: what stands now is never looked at again by the garbage collector, and the rest
    every 10,000 objects instead of 700.

    A message makes some dozens of objects and no cycles among them; looking for some took 8 % of a region's time
    (bench/region.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
