"""Signing in the processes of pools, on a real Ray cluster: keys stay in their files, and nothing goes unsigned."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import pytest

from engine.dkim.keys import KeyRing
from engine.values.message import Message
from engine.values.stream import Stream
from tests.support.dkim import dkim_section, records_of, verified
from tests.support.ray_fleet import ClusterFleet, actor_processes, audits, ray_processes, two_regions, until
from tests.support.receivers import Aiosmtpd

pytestmark = pytest.mark.ray

MESSAGES = 400
RAW = b"From: Ann <ann@example.com>\r\nTo: b@example.org\r\nSubject: %d\r\n\r\n.hello\r\n"


def test_a_pool_that_is_killed_while_it_signs(tmp_path: Path) -> None:
    with Aiosmtpd() as server:
        dkim = dkim_section(tmp_path / "keys", "example.com")
        config = two_regions(tmp_path, server.port, dkim=dkim)
        secrets = _secret_lines(config.dkim.domains[0].keys[0].file)
        shown = config.model_dump_json()
        assert not [line for line in secrets if line in shown]
        with ClusterFleet(config) as fleet:
            directory = os.environ["RAY_TMPDIR"]
            asyncio.run(_send_and_kill(fleet, server, directory))
            for process in ray_processes(directory):
                command = "\0".join([*process.cmdline(), *process.environ().values()])
                assert not [line for line in secrets if line in command]
        for report in audits(config):
            assert report.is_clean, report.problems
        records = records_of(KeyRing(config.dkim, time.monotonic), "example.com")
        stored = server.stored()
        subjects = {int(re.search(rb"^Subject: (\d+)", message, re.MULTILINE)[1]) for message in stored}  # type: ignore[index]
        assert subjects == set(range(MESSAGES))
        assert all(message.count(b"DKIM-Signature: v=1;") == 2 for message in stored)
        assert all(verified(message, records, 2) for message in stored[:: len(stored) // 20])
        logs = b"".join(path.read_bytes() for path in Path(directory).rglob("*") if path.is_file())
        assert not [line for line in secrets if line.encode() in logs]


async def _send_and_kill(fleet: ClusterFleet, server: Aiosmtpd, directory: str) -> None:
    for first in range(0, MESSAGES, 50):
        batch = [
            Message("a@example.com", (f"user{n}@example.org",), RAW % n, Stream.MARKETING)
            for n in range(first, first + 50)
        ]
        receipt = await fleet.client.submit(batch)
        assert not receipt.errors

    async def some_arrived() -> bool:
        return len(server.stored()) > 20

    await until(some_arrived)
    for pid in actor_processes(directory)["IspPoolActor"]:
        os.kill(pid, signal.SIGKILL)

    async def all_arrived() -> bool:
        snapshot = await fleet.client.snapshot()
        counts = [region["counts"] for region in snapshot["regions"].values()]
        return sum(c["delivered"] for c in counts) == MESSAGES

    await until(all_arrived, "not everything was delivered", 120.0)


def _secret_lines(file: Path) -> list[str]:
    """The lines of a PEM file between its marks."""
    return [line for line in file.read_text().splitlines() if not line.startswith("-")][1:-1]
