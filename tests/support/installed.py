"""sendfleet as somebody has it who has only its wheel: installed in a virtual environment, away from the source tree.

The wheel is built as `pip wheel` would, but with the kernels that are compiled already; the dependencies are those of
the environment in which the tests run. So nothing is fetched and nothing compiled.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
PACKAGES = ("engine", "native", "actors")
BUILD = "import setuptools.build_meta as backend; print(backend.build_wheel({directory!r}))"
COMMAND_TIMEOUT_S = 300


def build_wheel(directory: Path, *, version: str | None = None) -> Path:
    """A wheel of the source tree in that directory; of another version, if one is given."""
    tree = directory / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in SOURCES:
        shutil.copy2(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    project = tree / "pyproject.toml"
    if version is not None:
        text = re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), flags=re.MULTILINE)
        project.write_text(text)
    _take_over_kernels(tree)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(directory=str(directory))],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / done.stdout.split()[-1]


def _take_over_kernels(tree: Path) -> None:
    """Put the compiled kernels where the build looks for its results: those that are newer than their sources stay."""
    built = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "native"
    built.mkdir(parents=True)
    for kernel in sorted((tree / "native").glob("*.so")):
        shutil.copy(kernel, built)
        kernel.unlink()


class Installed:
    """A virtual environment with that wheel."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory
        venv.create(directory, with_pip=True)
        self.install(wheel)
        site = sysconfig.get_path("purelib", vars={"base": str(directory)})
        # after the installation, so that pip does not meet the sendfleet of the source tree there
        (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, wheel: Path) -> None:
        """As an upgrade, if there is an older one."""
        command = [
            self.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--upgrade",
            str(wheel),
        ]
        subprocess.run(command, check=True, timeout=COMMAND_TIMEOUT_S, env=environment())

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    @property
    def sendfleet(self) -> str:
        return str(self.directory / "bin" / "sendfleet")

    def run(self, *arguments: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """`sendfleet` with these arguments; AssertionError unless it ends with that status."""
        done = subprocess.run(
            [self.sendfleet, *arguments],
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def environment() -> dict[str, str]:
    """This process's, without what would lead to the source tree or to another fleet."""
    dropped = ("PYTHON", "RAY_", "SENDFLEET_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
