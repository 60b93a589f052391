"""The thin Ray shell: each actor builds an engine object and delegates.

Whether Ray demands a token is read once, when its library loads: so it is said here, before a module of this package
can import it. Everything else waits for a fleet.yaml (actors/environment.py).
"""

import os
import sys

RAY_CAME_FIRST = "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token"
os.environ["RAY_AUTH_MODE"] = "token"
