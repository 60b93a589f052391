"""A real DNS blocklist (knot): a source is listed and leaves, is de-listed and comes back through probation."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dns.message
import dns.query
import dns.update

from engine.config.schema import FleetConfig
from engine.region.region import Region
from engine.spool.store import Spool
from tests.support.nameservers import knot, needs_knot
from tests.support.region import LocalNode, fleet, start_region, until

ZONE = "$TTL 1\n@ SOA ns.bl.test. admin.bl.test. 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n"
TEST_ENTRIES = "2.0.0.127 A 127.0.0.2\n"
ALLOW_UPDATES = "acl:\n  - id: any\n    address: 127.0.0.1\n    action: update\n"

pytestmark = needs_knot


def listed_fleet(tmp_path: Path, port: int) -> FleetConfig:
    return fleet(
        tmp_path,
        9,
        resolver={"nameservers": ["127.0.0.1"], "port": port, "private_addresses": "allow", "timeout": "5s"},
        blocklists={"zones": [{"zone": "bl.test", "codes": {"127.0.0.2": "SBL"}}], "interval": "1m"},
        reputation={
            "removed_stay": "1s",
            "removed_stay_max": "2s",
            "probation": {"interval": "1s", "probes": 5, "stay": "1s", "ramp": [0.5], "step": "1s"},
        },
    )


def set_record(port: int, name: str, address: str | None) -> None:
    """Add or remove an entry of the list, as its operator does."""
    update = dns.update.Update("bl.test")
    if address is None:
        update.delete(name, "A")
    else:
        update.replace(name, 1, "A", address)
    answer = dns.query.tcp(update, "127.0.0.1", port=port, timeout=10)
    assert answer.rcode() == 0


def state_of(node: LocalNode, source: str) -> str:
    return str(node.owners[source].reputation.whole.state) if source in node.owners else ""


async def looked(region: Region) -> None:
    assert region.parts.listings is not None
    await region.parts.listings.look()


def sources_of(region: Region) -> dict[str, str]:
    found: Any = region.snapshot()["blocklists"]
    return dict(found["sources"])


def run(config: FleetConfig, body: Callable[[Region, LocalNode], Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the events (kind, fields) that are not about messages."""

    told: list[tuple[str, dict[str, Any]]] = []
    note = Spool.note_events

    def overheard(spool: Spool, rows: list[tuple[int, str, dict[str, Any]]]) -> object:
        told.extend((kind, fields) for _, kind, fields in rows)
        return note(spool, rows)

    async def go() -> None:
        region, spool, node = await start_region(config)
        try:
            await body(region, node)
        finally:
            await node.stop()
            await region.stop()
            spool.close()

    with patch.object(Spool, "note_events", overheard):  # from the first: a region asks as soon as it starts
        asyncio.run(go())
    return told


def test_a_listed_source_leaves_and_returns_through_probation(tmp_path: Path) -> None:
    options = {"bl.test": "    acl: any\n"}
    with knot(tmp_path, {"bl.test": ZONE + TEST_ENTRIES}, sections=ALLOW_UPDATES, options=options) as port:
        config = listed_fleet(tmp_path, port)

        async def body(region: Region, node: LocalNode) -> None:
            await looked(region)
            assert sources_of(region) == {}
            set_record(port, "11.0.0.127", "127.0.0.4")  # a code that does not count here
            await looked(region)
            assert sources_of(region) == {}
            set_record(port, "11.0.0.127", "127.0.0.2")
            await looked(region)
            assert sources_of(region) == {"eu-1": "bl.test (127.0.0.2 SBL)"}
            await until(lambda: state_of(node, "eu-1") == "removed")
            assert state_of(node, "eu-2") in ("", "active")
            assert region.parts.enforcement.allowances.of(0, "anywhere").weight == 0
            set_record(port, "11.0.0.127", "127.255.255.254")  # it refuses: that says nothing
            await looked(region)
            assert sources_of(region) == {"eu-1": "bl.test (127.0.0.2 SBL)"}
            set_record(port, "11.0.0.127", None)
            await looked(region)
            assert sources_of(region) == {}
            await until(lambda: state_of(node, "eu-1") == "probation")

        told = run(config, body)
    kinds = [(kind, fields.get("listed")) for kind, fields in told if kind == "listing"]
    assert kinds == [("listing", True), ("listing", False)]
    assert any(kind == "alert" and "listed: bl.test" in fields["reason"] for kind, fields in told)
    path = [(f["before"], f["state"]) for kind, f in told if kind == "reputation" and f["source"] == "eu-1"]
    assert path[:2] == [("active", "removed"), ("removed", "probation")]


def test_a_listing_survives_a_restart_without_a_question(tmp_path: Path) -> None:
    text = ZONE + TEST_ENTRIES + "11.0.0.127 A 127.0.0.2\n"
    with knot(tmp_path, {"bl.test": text}) as port:
        config = listed_fleet(tmp_path, port)

        async def body(region: Region, node: LocalNode) -> None:
            await until(lambda: state_of(node, "eu-1") == "removed")

        run(config, body)

    async def again(region: Region, node: LocalNode) -> None:
        assert sources_of(region) == {"eu-1": "bl.test (127.0.0.2 SBL)"}
        await until(lambda: state_of(node, "eu-1") == "removed")

    run(config, again)  # the nameserver is gone


def test_a_list_that_refuses_or_lists_everything_says_nothing(tmp_path: Path) -> None:
    for number, text in enumerate(("* A 127.255.255.254\n", "* A 127.0.0.2\n", "11.0.0.127 A 127.0.0.2\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with knot(folder, {"bl.test": ZONE + text}) as port:
            config = listed_fleet(folder, port)

            async def body(region: Region, node: LocalNode) -> None:
                await looked(region)
                await looked(region)
                assert sources_of(region) == {}
                found: Any = region.snapshot()["blocklists"]
                assert set(found["problems"]) == {"bl.test"}

            told = run(config, body)
        alerts = [fields for kind, fields in told if kind == "alert"]
        assert len(alerts) == 1
        assert "says nothing about us" in alerts[0]["reason"]


def test_a_list_that_does_not_answer_changes_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        config = listed_fleet(tmp_path, silent.getsockname()[1])
        config = config.model_copy(update={"resolver": config.resolver.model_copy(update={"timeout": 2.0})})

        async def body(region: Region, node: LocalNode) -> None:
            await looked(region)
            assert sources_of(region) == {}

        run(config, body)
