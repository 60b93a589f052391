"""A process that handles mail looks for garbage seldom, and never among what it started with."""

import subprocess
import sys

PROGRAM = """
import gc
from engine.ops.garbage import THRESHOLDS, collect_seldom
before = len(gc.get_objects())
collect_seldom()
assert gc.get_threshold() == THRESHOLDS
assert gc.get_freeze_count() > before // 2
assert len(gc.get_objects()) < before // 2
"""


def test_what_stands_at_the_start_is_left_alone_and_the_rest_is_looked_at_seldom() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
