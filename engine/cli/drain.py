"""`sendfleet drain REGION`, `sendfleet undrain REGION`: empty a region for maintenance, and have it take mail again.

REGION may be a region of several nodes, which is all its shards, or one of its shards.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import Failure, NumberRange, fleet_option, notes, output, read_fleet
from engine.config.schema import FleetConfig

LOOK_S = 0.5
SITES_NAMED = 3


def build_drain(
    port_factory: PortFactory,
    *,
    read: Callable[[Path], FleetConfig] = read_fleet,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    now_s: Callable[[], float] = time.monotonic,
) -> tuple[click.Command, click.Command]:
    """Both commands. `read` gives the configuration, by which names are checked before the fleet is looked for."""

    @click.command("drain")
    @fleet_option
    @click.argument("region")
    @click.option("--wait", is_flag=True, help="Return when nothing is left in the region.")
    @click.option(
        "--timeout",
        type=NumberRange(min=0),
        default=None,
        help="With --wait: fail after so many seconds.",
    )
    @click.option("--end", is_flag=True, help="The same as `undrain`.")
    def drain(fleet_path: Path, region: str, wait: bool, timeout: float | None, end: bool) -> None:
        """Have REGION accept no new mail, and hand over what waits there to the other regions.

        REGION is a region, with all its shards, or one shard, whose mail goes to the others of its region first.
        Clients go to another region at once. What is on the wire is settled; what no other region has a source for is
        sent by REGION itself. That it is drained outlasts restarts, until `undrain`.
        """
        if timeout is not None and not wait:
            raise click.UsageError("--timeout is for --wait")
        if end and wait:
            raise click.UsageError("--end and --wait exclude each other")
        config = read(fleet_path)
        if end:
            members = _named(config, region)
            asyncio.run(_end(port_factory(fleet_path), region, members))
        else:
            members = _drainable(config, region)
            asyncio.run(_drain(port_factory(fleet_path), members, wait, timeout, sleep, now_s))

    @click.command("undrain")
    @fleet_option
    @click.argument("region")
    def undrain(fleet_path: Path, region: str) -> None:
        """Have REGION take mail again. What it has handed over stays where it is."""
        members = _named(read(fleet_path), region)
        asyncio.run(_end(port_factory(fleet_path), region, members))

    return drain, undrain


def _named(config: FleetConfig, region: str) -> tuple[str, ...]:
    """Those that are meant by the name."""
    try:
        return config.members(region)
    except ValueError as error:
        raise Failure(str(error)) from error


def _drainable(config: FleetConfig, region: str) -> tuple[str, ...]:
    """What is to be drained. With copies a shard gives its mail to its standby alone, which is another shard."""
    members = _named(config, region)
    if len(members) > 1 and config.fleet.replicas:
        raise Failure(
            f"region {region} cannot be drained at once with replicas: 1, because its shards hold each other's copies: "
            f"drain one of {', '.join(members)}, stop its node when it is drained, and go on with the next"
        )
    return members


async def _order(port: FleetPort, region: str, *, end: bool) -> bool:
    try:
        return await port.drain(region, end=end)
    except ValueError as error:
        raise Failure(str(error)) from error


async def _order_each(port: FleetPort, regions: Sequence[str], *, end: bool) -> dict[str, bool]:
    """The order to each, also if one does not answer."""
    changed: dict[str, bool] = {}
    silent: list[str] = []
    for region in regions:
        try:
            changed[region] = await _order(port, region, end=end)
        except (ConnectionError, TimeoutError) as error:
            if len(regions) == 1:
                raise
            silent.append(f"{region}: {error}")
    if silent:
        done = f"{', '.join(changed)} has the order" if changed else "nobody has the order"
        raise Failure(f"{done}, but not {'; '.join(silent)}: repeat it")
    return changed


async def _end(port: FleetPort, region: str, members: Sequence[str]) -> None:
    changed = await _order_each(port, members, end=True)
    if not any(changed.values()):
        raise Failure(f"region {region} is not being drained")
    for name in members:
        output().print(f"region {name} takes mail again")


async def _drain(
    port: FleetPort,
    regions: Sequence[str],
    wait: bool,
    timeout_s: float | None,
    sleep: Callable[[float], Awaitable[None]],
    now_s: Callable[[], float],
) -> None:
    for region, is_new in (await _order_each(port, regions, end=False)).items():
        if not is_new:
            notes().print(f"region {region} is being drained already")
        if not wait:
            output().print(f"region {region} is being drained: `sendfleet status` shows how far it is")
    deadline = None if timeout_s is None else now_s() + timeout_s
    for region in regions if wait else ():
        await _until_drained(port, region, timeout_s, deadline, sleep, now_s)


async def _until_drained(
    port: FleetPort,
    region: str,
    timeout_s: float | None,
    deadline: float | None,
    sleep: Callable[[float], Awaitable[None]],
    now_s: Callable[[], float],
) -> None:
    said = ""
    while True:
        found = (await port.snapshot()).get("regions", {}).get(region, {})
        line = found.get("error") or drain_line(found)
        if found.get("hand_over", {}).get("condition") == "drained":
            output().print(f"region {region}: drained")
            return
        if line is None:
            raise Failure(f"region {region} is not being drained any more")
        if line != said:
            notes().print(f"region {region}: {line}")
            said = line
        if deadline is not None and timeout_s is not None and now_s() >= deadline:
            raise Failure(f"region {region} is not drained after {timeout_s:g} s: {line}")
        await sleep(LOOK_S)


def drain_line(region: dict[str, Any]) -> str | None:
    """How far the draining of a region is, of its snapshot; None if it is not being drained."""
    status = region.get("hand_over", {})
    condition = status.get("condition", "up")
    if condition == "up":
        return None
    if condition != "draining":
        return str(condition)
    left = status["left"]
    parts = [f"draining, {left} left" if left else "draining, its keys are on their way to the others"]
    outstanding = sum(region.get("outstanding", {}).values())
    if outstanding:
        parts.append(f"{outstanding} at its pools")
    parts += [f"{count} offered to {peer}" for peer, count in sorted(status["offered"].items())]
    parts += [f"{peer} takes nothing: {why}" for peer, why in sorted(status["refusals"].items())]
    if left and not status["takers"] and not status["refusals"]:
        parts.append("no other region is within reach")
    return ", ".join(parts)


def need_line(region: dict[str, Any]) -> str | None:
    """What a region hands over for being in need, of its snapshot; None if there is nothing of the kind."""
    status = region.get("hand_over", {})
    parts = []
    if blocked := status.get("in_need"):
        parts.append(f"cannot send to {_sites(path[0] for path in blocked)} for long")
    if overloaded := status.get("overloaded"):
        seconds = max(path[3] for path in overloaded)
        waits = f"{seconds // 60} min" if seconds >= 120 else f"{seconds} s"
        parts.append(
            f"is overloaded: mail to {_sites(path[0] for path in overloaded)} has waited for {waits}"
        )
    if not parts:
        return None
    peers = ", ".join(status["takers"])
    gives = f"asks {peers} to take it" if peers else "no other region takes anything"
    return ", ".join([*parts, gives, f"{status['handed_over']} handed over"])


def _sites(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    found = sorted(set(names))
    more = f" and {len(found) - SITES_NAMED} more" if len(found) > SITES_NAMED else ""
    return ", ".join(found[:SITES_NAMED]) + more
