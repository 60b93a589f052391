"""Ray reads its settings when it is imported, and some module of the tests may import it while they are collected."""

import os

from actors.environment import ONLY_LOOPBACK, SETTINGS

os.environ.update(SETTINGS)
os.environ[ONLY_LOOPBACK] = "0"
