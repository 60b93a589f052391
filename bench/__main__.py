"""`python -m bench [NAME]...`: run these benches, or all: every module here that has a `main`, one after
the other.
"""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path


def names() -> list[str]:
    """The benches: modules of this folder that define `main`."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [
        name
        for name in sorted(modules)
        if name != "__main__" and hasattr(importlib.import_module(f"bench.{name}"), "main")
    ]


def main() -> int:
    chosen = sys.argv[1:] or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    failed = [name for name in chosen if subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
