"""How to start another process of this installation.

`python -m` looks into the current directory first: somebody's own folder `engine` or `actors` would be taken for ours.
"""

import sys


def own_module(name: str) -> list[str]:
    """The command line of a module, to which arguments are added."""
    return [sys.executable, "-P", "-m", name]
