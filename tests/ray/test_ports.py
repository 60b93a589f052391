"""Ray runs code for whoever reaches its ports: those of a fleet of one machine are on loopback, every one of them."""

import asyncio
import ipaddress
from pathlib import Path

import psutil
import pytest

from engine.sink.process import SinkProcess
from tests.support.ray_fleet import messages, prepare_ray, two_regions, until

pytestmark = pytest.mark.ray


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


def test_nothing_of_a_fleet_of_one_machine_can_be_reached_from_outside(tmp_path: Path) -> None:
    personalities = tmp_path / "sink.yaml"
    personalities.write_text("personalities: {accept: {port: 0}}\n")
    with SinkProcess(personalities, tmp_path / "sink.jsonl") as sink:
        config = two_regions(tmp_path, sink.addresses["accept"][1])
        prepare_ray(config)
        import ray

        from actors.client import AsyncClient
        from actors.deploy import start_fleet, stop_fleet
        from actors.environment import TOKEN_FILE, run_directory
        from actors.local_cluster import LocalCluster

        cluster = LocalCluster(config)
        client = AsyncClient(config)

        async def a_pool_in_each_region() -> None:
            for number in range(4):
                await client.submit(messages(1, first=number))

            async def delivered() -> bool:
                regions = (await client.snapshot())["regions"].values()
                return all(region.get("counts", {}).get("delivered") for region in regions)

            await until(delivered)

        try:
            start_fleet(config, cluster.start(), cluster.check_nodes)
            asyncio.run(a_pool_in_each_region())
            found = listeners(run_directory(config) / TOKEN_FILE)
            stop_fleet(config)
        finally:
            ray.shutdown()
            cluster.stop()
    listening = {name for name, addresses in found.items() if addresses}
    assert {"gcs_server", "raylet"} <= listening
    assert len([name for name in listening if name.startswith("ray::")]) >= 4, (
        "Fleet, regions, sources, pools"
    )
    outside = {
        name: addresses
        for name, addresses in found.items()
        for address in addresses
        if not is_loopback(address)
    }
    assert outside == {}


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback
