"""docs/first-campaign.md as somebody follows it who knows nothing: its files are saved, its commands are run."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.ops.free_port import free_port
from engine.sink.log import SinkLog
from engine.spool.audit import audit
from tests.support.installed import COMMAND_TIMEOUT_S, environment

pytestmark = pytest.mark.ray

TEXT = (Path(__file__).parents[2] / "docs" / "first-campaign.md").read_text()
SAVE = re.compile(r"Save this as\s+`([^`]+)`")


def steps(text: str) -> list[tuple[str, str]]:
    """(name of a file, what to save in it) or ("", commands), as they come; other indented blocks are examples."""
    found = []
    paragraphs = re.split(r"\n\n", text)
    for before, paragraph in itertools.pairwise(paragraphs):
        if not paragraph.startswith("    "):
            continue
        block = "".join(line.removeprefix("    ") + "\n" for line in paragraph.splitlines())
        save = SAVE.search(before)
        if save is not None:
            found.append((save[1], block))
        elif block.startswith(("sendfleet ", "mkdir ")):
            found.append(("", block))
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def run(commands: str, directory: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxc", commands],
        cwd=directory,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_works_as_it_is_written(directory: Path) -> None:
    port = free_port()
    sinks: list[subprocess.Popen[bytes]] = []
    said: dict[str, str] = {}
    first, _, _ = TEXT.partition("## When it does not work")
    home = directory / "first-campaign"
    try:
        for name, block in steps(first):
            if name:
                (home / name).write_text(block.replace("2525", str(port)))
                continue
            for command in block.splitlines():
                if command.startswith("sendfleet sink"):
                    command = f"exec {command} --only accept={port}"  # the others' ports may be in use here
                    sinks.append(start(command, home))
                elif command.startswith("sendfleet audit"):
                    wait_until_nothing_is_queued(home / "spool" / "here")
                    said[command] = run(command, home)
                elif not command.startswith("cd "):
                    said[command] = run(command, home if home.exists() else directory)
    finally:
        if (home / "run" / "cluster.json").exists():
            run("sendfleet down", home)
        for sink in sinks:
            sink.send_signal(signal.SIGINT)
            sink.wait()
    commands = [command.partition("#")[0].strip() for command in said]
    assert commands[0] == "mkdir first-campaign"
    for wanted in (
        "config check",
        "up",
        "send campaign.yaml --dry-run",
        "send campaign.yaml",
        "status",
        "audit",
        "down",
    ):
        assert f"sendfleet {wanted}" in commands
    assert (
        "3 recipients accepted, 0 accepted before, 0 refused, 2 bad rows"
        in said["sendfleet send campaign.yaml"]
    )
    arrived = SinkLog(home / "sink.jsonl").recipients()
    assert arrived == {"ann@gmail.test": 1, "bob@outlook.test": 1, "carl@mail1.example.net": 1}
    assert (home / "recipients.bad-rows.csv").read_text().count("\n") == 3


def start(command: str, directory: Path) -> subprocess.Popen[bytes]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=directory, env={**environment(), "PATH": path}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()  # it listens
    return process


def wait_until_nothing_is_queued(spool: Path) -> None:
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while audit(spool).counts["queued"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
