"""Real nameservers on loopback: knot, authoritative, and unbound, which validates what knot has signed.

Both run from .tools (tools/install_test_servers.sh) or from the system, in the foreground, in a folder of the test,
with nothing of the system's configuration.
"""

import asyncio
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dns.asyncquery
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from engine.ops.free_port import free_port

TOOLS = Path(__file__).parents[2] / ".tools"


def server_path(name: str) -> Path | None:
    return next((p for p in (TOOLS / "usr/sbin" / name, Path("/usr/sbin") / name) if p.exists()), None)


KNOTD = server_path("knotd")
UNBOUND = server_path("unbound")
needs_knot = pytest.mark.skipif(
    KNOTD is None, reason="knot is not installed: run tools/install_test_servers.sh"
)
needs_unbound = pytest.mark.skipif(
    KNOTD is None or UNBOUND is None,
    reason="knot or unbound is not installed: run tools/install_test_servers.sh",
)


@contextmanager
def knot(
    folder: Path,
    zones: Mapping[str, str],
    *,
    signed: tuple[str, ...] = (),
    sections: str = "",
    options: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Serve zones (name -> zone file without $ORIGIN); those in `signed` are signed by knot itself. Gives the port.

    `sections` (keys, ACLs, remotes) stand before the zones, `options` with each zone. A zone without text is fetched.
    """
    port = free_port()
    lines = [
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"  background-workers: 1\ndatabase:\n  storage: {folder}\n"
        f"log:\n  - target: {folder}/knot.log\n    any: info\n",
        "policy:\n  - id: fast\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    nsec3: on\n",
        sections,
        "zone:\n",
    ]
    for zone, text in zones.items():
        if text:
            (folder / f"{zone}.zone").write_text(f"$ORIGIN {zone}.\n{text}")
        lines.append(f"  - domain: {zone}\n    storage: {folder}\n    file: {zone}.zone\n")
        lines.append((options or {}).get(zone, ""))
        if zone in signed:
            lines.append("    dnssec-signing: on\n    dnssec-policy: fast\n    zonefile-sync: -1\n")
            lines.append("    zonefile-load: difference-no-serial\n    journal-content: all\n")
    (folder / "knot.conf").write_text("".join(lines))
    with _running(
        [str(KNOTD), "-c", str(folder / "knot.conf")], folder, port, f"{next(iter(zones))}.", "SOA"
    ):
        yield port


@contextmanager
def unbound(folder: Path, authority_port: int, zones: Mapping[str, str]) -> Iterator[int]:
    """A validating resolver for zones of a knot on loopback. `zones`: name -> "signed" (its key is the trust anchor),
    "insecure", or "bogus" (the anchor is another key than the zone's). Gives the port.
    """
    port = free_port()
    anchors = asyncio.run(_anchors(authority_port, zones))
    stubs = "".join(
        f'stub-zone:\n  name: "{zone}"\n  stub-addr: 127.0.0.1@{authority_port}\n  stub-no-cache: yes\n'
        for zone in zones
    )
    # unbound answers for reserved names itself unless told otherwise
    local = "".join(f'  local-zone: "{zone}." nodefault\n' for zone in ("test", *zones))
    insecure = "".join(f'  domain-insecure: "{z}"\n' for z, kind in zones.items() if kind == "insecure")
    (folder / "unbound.conf").write_text(
        f"server:\n  interface: 127.0.0.1\n  port: {port}\n  access-control: 127.0.0.0/8 allow\n"
        f'  directory: "{folder}"\n  chroot: ""\n  username: ""\n  pidfile: "{folder}/unbound.pid"\n'
        f'  logfile: "{folder}/unbound.log"\n  use-syslog: no\n  verbosity: 1\n  num-threads: 1\n'
        "  do-daemonize: no\n  do-ip6: no\n  do-not-query-localhost: no\n"
        '  module-config: "validator iterator"\n  val-log-level: 2\n  trust-anchor-signaling: no\n'
        f"  qname-minimisation: no\n{local}{insecure}{anchors}remote-control:\n  control-enable: no\n{stubs}"
    )
    command = [str(UNBOUND), "-d", "-c", str(folder / "unbound.conf")]
    zone = next(zone for zone, kind in zones.items() if kind != "bogus")
    with _running(command, folder, port, f"{zone}.", "SOA"):
        yield port


async def _anchors(authority_port: int, zones: Mapping[str, str]) -> str:
    keys = {
        zone: (await _query(authority_port, f"{zone}.", "DNSKEY")).answer[0][0].to_text()
        for zone, kind in zones.items()
        if kind != "insecure"
    }
    lines = []
    for zone, kind in zones.items():
        if kind == "insecure":
            continue
        key = keys[zone] if kind == "signed" else next(k for z, k in keys.items() if z != zone)
        lines.append(f'  trust-anchor: "{zone}. 60 IN DNSKEY {key}"\n')
    return "".join(lines)


@contextmanager
def _running(command: list[str], folder: Path, port: int, name: str, kind: str) -> Iterator[None]:
    libraries = TOOLS / "usr/lib" / f"{platform.machine()}-linux-gnu"
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            stdout=output,
            stderr=output,
        )
    try:
        asyncio.run(_until_it_answers(port, process, folder, name, kind))
        yield
    finally:
        process.terminate()
        process.wait(10)


async def _until_it_answers(
    port: int, process: "subprocess.Popen[bytes]", folder: Path, name: str, kind: str
) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        try:
            answer = await _query(port, name, kind)
        except (OSError, TimeoutError, dns.exception.DNSException):
            answer = None
        if answer is not None and answer.rcode() == dns.rcode.NOERROR and answer.answer:
            return
        await asyncio.sleep(0.05)
    logs = [path.read_text(errors="replace") for path in folder.glob("*.log")]
    raise AssertionError(f"{process.args!r} does not answer:\n{(folder / 'output').read_text()}\n{logs}")


async def _query(port: int, name: str, kind: str) -> dns.message.Message:
    question = dns.message.make_query(name, kind)
    return await dns.asyncquery.udp(question, "127.0.0.1", port=port, timeout=0.5)
