"""A fleet of one machine on the cluster that `up` starts: who can reach it, what its clients notice of a restart."""

import asyncio
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.config.schema import FleetConfig
from tests.support.ray_fleet import messages, prepare_ray, two_regions, until
from tests.support.sinks import accepting_sink

pytestmark = pytest.mark.ray


class Local:
    """The fleet, started once for this file."""

    def __init__(self, config: FleetConfig, client: Any) -> None:
        self.config = config
        self.client = client

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
            yield Local(config, AsyncClient(config))
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
