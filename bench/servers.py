"""Where the programs of other projects are that benches measure with: Postfix's, unpacked by
tools/install_test_servers.sh.

They are never installed or started as services: the programs are taken out of the unpacked Debian
package, with its own libraries.
"""

import os
import platform
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_LIBRARIES = (TOOLS / "usr/lib/postfix", TOOLS / f"usr/lib/{platform.machine()}-linux-gnu")


class NotInstalled(Exception):
    """A program is missing; says how to get it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} is not there: run tools/install_test_servers.sh"


def program(name: str) -> str:
    """The path of one of Postfix's programs; raises NotInstalled."""
    for folder in ("usr/sbin", "usr/lib/postfix/sbin"):
        path = TOOLS / folder / name
        if path.exists():
            return str(path)
    raise NotInstalled(name)


def environment() -> dict[str, str]:
    """The environment in which the unpacked programs find their libraries."""
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, _LIBRARIES))}


def switch_user(name: str = "nobody") -> list[str]:
    """The option that Postfix's test programs want when they are started by root."""
    return ["-u", name] if os.geteuid() == 0 else []
