"""Build the Cython kernels of `native/`.

Everything else about the distribution is in pyproject.toml. The environment variable SENDFLEET_BUILD chooses:
  release    (default) -O3, no run-time checks
  debug      bounds and wraparound checks on, assertions on, -O1 -g
  sanitised  as debug, with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitised` runs the tests with it
  none       no kernels: for `pip install -e .` where something else builds them (the Makefile)

Overflow is left to the UndefinedBehaviorSanitizer: Cython's own check refuses hashes that wrap on purpose, and does not
compile for enums and pointer differences.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

BUILD = os.environ.get("SENDFLEET_BUILD", "release")
FLAGS = {
    "release": (["-O3", "-fno-strict-aliasing"], []),
    "debug": (["-O1", "-g", "-DSENDFLEET_DEBUG=1"], []),
    "sanitised": (
        [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
            "-DSENDFLEET_DEBUG=1",
        ],
        ["-fsanitize=address,undefined"],
    ),
}
if BUILD not in (*FLAGS, "none"):
    raise SystemExit(f"SENDFLEET_BUILD={BUILD!r}: allowed are {', '.join(FLAGS)} and none")
compile_args, link_args = FLAGS.get(BUILD, ([], []))
CHECKED = BUILD != "release"

extensions = [
    Extension(f"native.{path.stem}", [str(path)], extra_compile_args=compile_args, extra_link_args=link_args)
    for path in sorted(Path("native").glob("*.pyx"))
    if BUILD != "none"
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "boundscheck": CHECKED,
            "wraparound": CHECKED,
            "cdivision": not CHECKED,
            "initializedcheck": CHECKED,
            "embedsignature": True,
        },
    )
)
