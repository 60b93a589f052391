"""A name server (knot) on loopback with the submission host name of a temporary fleet, for the drill `dns`."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.drill.scenarios import CannotRunHere, DrillRefused
from engine.ops.free_port import free_port

ZONE = "drill.test"
NAME = "submit.drill.test"
START_S = 10.0


class Nameserver:
    """`start` gives the section `dns_failover` for it."""

    def __init__(self, directory: Path, addresses: Mapping[str, Sequence[str]]) -> None:
        self._directory = directory
        self._addresses = addresses
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Returns when it listens. DrillRefused if knot is not installed or does not start."""
        program = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise CannotRunHere("dns: the name server knotd is not installed (Debian package knot)")
        self._directory.mkdir(parents=True, mode=0o700)
        port = free_port()
        secret = b64encode(secrets.token_bytes(32)).decode()
        key = self._directory / "tsig.key"
        key.touch(0o600)
        key.write_text(f"hmac-sha256:drill:{secret}\n")
        folder = self._directory
        (folder / "zone").write_text(
            f"$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns admin 1 60 60 600 60\n@ NS ns\nns A 127.0.0.1\n"
        )
        (folder / "knot.conf").write_text(
            f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n"
            f"  background-workers: 1\ndatabase:\n  storage: {folder}\n"
            f"key:\n  - id: drill\n    algorithm: hmac-sha256\n    secret: {secret}\n"
            "acl:\n  - id: drill\n    key: drill\n    action: update\n"
            f"zone:\n  - domain: {ZONE}\n    storage: {folder}\n    file: zone\n    acl: drill\n"
        )
        (folder / "knot.conf").chmod(0o600)
        with (folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [program, "-c", str(folder / "knot.conf")], stdout=output, stderr=output, env={**os.environ}
            )
        self._wait(port)
        server = f"127.0.0.1:{port}"
        return {
            "zone": ZONE,
            "name": NAME,
            "addresses": {region: list(found) for region, found in self._addresses.items()},
            "servers": [server],
            "authorities": [server],
            "key_file": str(key),
            "up_after": "3s",
            "interval": "1s",
            "check": "5s",
        }

    def _wait(self, port: int) -> None:
        assert self._process is not None
        end_s = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < end_s:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    return
            except OSError:
                time.sleep(0.05)
        said = (self._directory / "output").read_text(errors="replace").strip().splitlines()
        self.stop()
        raise DrillRefused(f"dns: knotd does not start: {said[-1] if said else 'it says nothing'}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
