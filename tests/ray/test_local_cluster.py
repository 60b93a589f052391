"""A fleet of one machine on the cluster that `up` starts: who can reach it, what its clients notice of a restart."""

import asyncio
import ipaddress
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from tests.support.ray_fleet import messages, prepare_ray, two_regions, until
from tests.support.sinks import accepting_sink

pytestmark = pytest.mark.ray


class Local:
    """The fleet, started once for this file."""

    def __init__(self, config: FleetConfig, client: Any, sink: SinkProcess) -> None:
        self.config = config
        self.client = client
        self.sink = sink

    def run(self, call: Any) -> Any:
        return asyncio.run(call)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    directory = tmp_path_factory.mktemp("fleet")
    with accepting_sink(directory) as sink:
        config = two_regions(directory, sink.addresses["accept"][1])
        prepare_ray(config)
        import ray

        from actors.client import AsyncClient
        from actors.deploy import start_fleet, stop_fleet
        from actors.local_cluster import LocalCluster

        cluster = LocalCluster(config)
        try:
            start_fleet(config, cluster.start(), cluster.check_nodes)
            yield Local(config, AsyncClient(config), sink)
            stop_fleet(config)
        finally:
            ray.shutdown()
            cluster.stop()


def listeners(token: Path) -> dict[str, list[str]]:
    """Addresses on which the processes listen that have the fleet's token, by name of the process."""
    from actors.local_cluster import processes_with

    found: dict[str, list[str]] = {}
    for process in processes_with("RAY_AUTH_TOKEN_PATH", str(token)):
        try:
            sockets = [s for s in process.net_connections(kind="inet") if s.status == psutil.CONN_LISTEN]
            found.setdefault(process.name(), []).extend(s.laddr.ip for s in sockets)
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


def test_ray_runs_code_for_whoever_reaches_it_so_nobody_else_can(local: Local) -> None:
    from actors.environment import TOKEN_FILE, run_directory

    async def a_pool_in_each_region() -> None:
        for number in range(4):
            await local.client.submit(messages(1, first=number))

        async def delivered() -> bool:
            regions = (await local.client.snapshot())["regions"].values()
            return all(region.get("counts", {}).get("delivered") for region in regions)

        await until(delivered)

    local.run(a_pool_in_each_region())
    found = listeners(run_directory(local.config) / TOKEN_FILE)
    listening = {name for name, addresses in found.items() if addresses}
    assert {"gcs_server", "raylet"} <= listening
    assert len([name for name in listening if name.startswith("ray::")]) >= 4, (
        "Fleet, regions, sources, pools"
    )
    outside = {
        name: addresses for name, addresses in found.items() if not all(is_loopback(a) for a in addresses)
    }
    assert outside == {}


def test_a_client_from_before_a_restart_asks_the_actors_of_after_it(local: Local) -> None:
    from actors.deploy import start_fleet, stop_fleet
    from actors.local_cluster import LocalCluster

    receipt = local.run(local.client.submit(messages(1, first=100)))
    (id_,) = receipt.ids[0]
    before = local.run(local.client.snapshot())["pid"]
    assert local.run(local.client.status(id_)) is not None
    source = local.config.sources[0].name
    local.run(local.client.source(source))
    stop_fleet(local.config)
    start_fleet(local.config, LocalCluster(local.config).address())
    assert local.run(local.client.snapshot())["pid"] != before
    assert local.run(local.client.status(id_)) is not None
    local.run(local.client.source(source))
    assert local.run(local.client.submit(messages(1, first=101))).ids


def processes_of(config: FleetConfig, name: str) -> list[psutil.Process]:
    """Those of the fleet with a name or title that begins so."""
    from actors.environment import TOKEN_FILE, run_directory
    from actors.local_cluster import processes_with

    found = []
    for process in processes_with("RAY_AUTH_TOKEN_PATH", str(run_directory(config) / TOKEN_FILE)):
        try:
            if process.name().startswith(name) or process.cmdline()[0].startswith(name):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def test_the_head_of_ray_dies_and_returns_to_the_actors_that_are_there(local: Local) -> None:
    from actors.local_cluster import LocalCluster

    before = local.run(local.client.snapshot())
    (head,) = processes_of(local.config, "gcs_server")
    head.kill()
    assert local.run(local.client.submit(messages(1, first=200))).ids

    async def is_back() -> bool:
        found = processes_of(local.config, "gcs_server")
        return len(found) == 1 and found[0] != head

    local.run(until(is_back, "the head is not started again"))
    source = processes_of(local.config, "ray::EgressIpActor")[0]
    source.kill()

    async def is_replaced() -> bool:
        found = processes_of(local.config, "ray::EgressIpActor")
        return len(found) == len(local.config.sources) and source not in found

    local.run(until(is_replaced, "a source that dies is not started again"))
    after = local.run(local.client.snapshot())
    assert after["pid"] == before["pid"]
    for region, found in before["regions"].items():
        assert after["regions"][region]["pid"] == found["pid"]
    assert LocalCluster(local.config).fallen() == []


RECIPIENTS = 3000
PATIENCE_S = 180


def test_a_sender_is_killed_at_several_moments_and_then_two_go_on_at_once(
    local: Local, tmp_path: Path
) -> None:
    fleet_path = tmp_path / "fleet.yaml"
    fleet_path.write_text(yaml.safe_dump(local.config.model_dump(mode="json", exclude_unset=True)))
    wanted = [f"campaign{n}@example.org" for n in range(RECIPIENTS)]
    (tmp_path / "recipients.csv").write_text("\n".join(["email", *wanted, ""]))
    campaign = {
        "id": "killed",
        "sender": "bounces@example.com",
        "from": "news@example.com",
        "subject": "x",
        "text": "{{ recipient }}",
        "recipients": {"file": "recipients.csv"},
    }
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    command = [
        sys.executable,
        "-m",
        "actors",
        "send",
        str(tmp_path / "campaign.yaml"),
        "--fleet",
        str(fleet_path),
    ]

    def accepted() -> int:
        root = local.config.spool.directory
        return sum(audit(root / region.name).accepted for region in local.config.regions)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    before = accepted()
    for moment in (0, 1, RECIPIENTS // 2):  # recipients that are on disk
        sender = start()
        deadline = time.monotonic() + PATIENCE_S
        while sender.poll() is None and accepted() - before < moment:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sender.kill()
        sender.communicate()
    said = [sender.communicate(timeout=PATIENCE_S)[0] for sender in (start(), start())]
    assert all("0 refused, 0 bad rows" in text for text in said), said
    assert accepted() - before == RECIPIENTS
    last, _ = start().communicate(timeout=PATIENCE_S)
    assert f"0 recipients accepted, {RECIPIENTS} accepted before" in last

    async def delivered() -> bool:
        regions = (await local.client.snapshot())["regions"].values()
        return all(region.get("counts", {}).get("queued") == 0 for region in regions)

    local.run(until(delivered, seconds=PATIENCE_S))
    arrived = local.sink.log().recipients()
    assert {r: arrived.get(r) for r in wanted} == dict.fromkeys(wanted, 1)
