"""`sendfleet shaping list | explain | cancel | check`: what the providers' replies have changed, why, until when."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import (
    CommandGroup,
    Failure,
    check_source,
    fleet_option,
    output,
    read_fleet,
    say,
)
from engine.config.schema import FleetConfig
from engine.providers.profiles import load_profiles
from engine.shaping.linter import lint

EFFECTS = {
    "suspend": "sending over the source to this site goes on at once, at the rate that is in force",
    "slow": "rate and connections are the provider's full ones again, unless another order holds",
    "recover": "the recovery ends: all connections are open at once",
    "remove": "the source begins its probation at this site now, with probes",
    "alert": "only the alert ends",
}


def build_shaping(
    port_factory: PortFactory, *, read: Callable[[Path], FleetConfig] = read_fleet
) -> click.Group:
    """The group; its commands speak with the owners of the sources, whose names are checked by what `read` gives."""

    @click.group("shaping", cls=CommandGroup)
    def shaping() -> None:
        """Show, explain and cancel what the providers' replies have set in force."""

    @shaping.command("list")
    @fleet_option
    @click.option("--source", help="Only this source.")
    @click.option("--site", help="Only this provider (or `mx:` site).")
    @click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
    def list_(fleet_path: Path, source: str | None, site: str | None, as_json: bool) -> None:
        """Show what is in force: the rule, what it does, until when, and the reply that set it off."""
        check_source(read(fleet_path), source)
        rows = [
            row
            for row in asyncio.run(_orders(port_factory(fleet_path), source))
            if site in (None, row["site"])
        ]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        elif rows:
            for line in _listed(rows):
                say(line)
        else:
            output().print("nothing is in force")

    @shaping.command("explain")
    @fleet_option
    @click.argument("source")
    @click.argument("site")
    @click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
    def explain(fleet_path: Path, source: str, site: str, as_json: bool) -> None:
        """Say why SOURCE may send to SITE what it may: standing, orders with their rules, what the region enforces."""
        check_source(read(fleet_path), source)
        found = asyncio.run(_explained(port_factory(fleet_path), source, site))
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        for line in _sentences(found):
            say(line)

    @shaping.command("cancel")
    @fleet_option
    @click.argument("source")
    @click.argument("site")
    @click.argument("rule")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    def cancel(fleet_path: Path, source: str, site: str, rule: str, yes: bool) -> None:
        """End the order that RULE has given for SOURCE at SITE. Shows what changes, and asks."""
        check_source(read(fleet_path), source)
        port = port_factory(fleet_path)
        rows = [row for row in asyncio.run(_orders(port, source)) if row["site"] == site and row["rule"]]
        order = next((row for row in rows if row["rule"] == rule), None)
        if order is None:
            names = ", ".join(sorted(row["rule"] for row in rows)) or "none"
            raise Failure(
                f"source {source} at {site}: no order of a rule {rule!r} is in force; there are: {names}"
            )
        for line in _listed([order]):
            say(line)
        output().print(f"If it is cancelled: {EFFECTS[order['action']]}.", markup=False)
        if order["scope"] in ("netblock", "provider"):
            whose = "of its netblock" if order["scope"] == "netblock" else "of the region"
            output().print(f"It holds the other sources {whose} too; they go on as well.", markup=False)
        if not yes:
            click.confirm("Cancel it?", abort=True)
        try:
            changed = asyncio.run(port.order(source, "cancel", site, rule))
        except ValueError as error:
            raise Failure(str(error)) from error
        if not changed:
            raise Failure(f"source {source} at {site}: the order has ended meanwhile")
        output().print("cancelled")

    shaping.add_command(check)
    return shaping


@click.command("check")
@fleet_option
def check(fleet_path: Path) -> None:
    """Prove the automation rules of every provider against their samples; exit status 1 if one is wrong."""
    profiles = load_profiles(read_fleet(fleet_path).providers)
    findings = [
        f"{name}: {finding}" for name, profile in profiles.items() for finding in lint(profile.automation)
    ]
    if findings:
        raise Failure("; ".join(findings))
    count = sum(len(profile.automation) for profile in profiles.values())
    output().print(f"{count} rules of {len(profiles)} providers match their samples, none is shadowed")


async def _orders(port: FleetPort, source: str | None) -> list[dict[str, Any]]:
    names = [s.name for s in port.config.sources if source in (None, s.name)]
    owners = await asyncio.gather(*(port.source(name) for name in names))
    rows = [{"source": owner["source"], **row} for owner in owners for row in owner["shaping"]]
    return sorted(rows, key=lambda row: (row["source"], row["site"], row["since_ms"]))


async def _explained(port: FleetPort, source: str, site: str) -> dict[str, Any]:
    orders = [row for row in await _orders(port, source) if row["site"] == site]
    owner, snapshot = await asyncio.gather(port.source(source), port.snapshot())
    region = next(s.region for s in port.config.sources if s.name == source)
    enforced = snapshot.get("regions", {}).get(region, {})
    return {
        "source": source,
        "site": site,
        "standings": [row for row in owner["standings"] if row["site"] in ("", site)],
        "warmup": [row for row in owner["warmup"] if row["site"] == site],
        "orders": [{**row, "written": owner["rules"].get(row["rule"])} for row in orders],
        "region": region,
        "region_error": enforced.get("error", ""),
        "allowances": [
            row
            for row in enforced.get("allowances", [])
            if row["source"] == source and row["site"] in ("", site)
        ],
        "suspensions": [
            row
            for row in enforced.get("suspensions", [])
            if row["source"] in ("", source) and row["site"] == site
        ],
    }


def _sentences(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['source']} at {found['site']}, as its owner sees it:"]
    for row in found["standings"]:
        whose = "the whole source" if row["site"] == "" else "at this site"
        until = f", until {time_text(row['until_ms'])} at least" if row["until_ms"] else ""
        why = f": {row['reason']}" if row["reason"] else ""
        lines.append(f"  {whose}: {row['state']}, score {row['score']}{until}{why}")
    if not any(row["site"] == found["site"] for row in found["standings"]):
        lines.append("  at this site: nothing seen yet")
    for row in found["warmup"]:
        if row["phase"] != "finished":
            lines.append(
                f"  warm-up {row['phase']}, stage {row['stage']} of {row['stages']}: "
                f"{row['day_cap']} a day, {row['hour_cap']} an hour"
            )
    for row in found["orders"]:
        lines += _order_lines(row)
    if not any(row["action"] != "adapt" for row in found["orders"]):
        lines.append("  no rule has given an order")
    lines.append(f"in force in region {found['region']}:")
    if found["region_error"]:
        lines.append(f"  the region does not answer: {found['region_error']}")
    for row in found["allowances"]:
        cap = "none" if row["daily_cap"] < 0 else row["daily_cap"]
        at_once = min([n for n in (row["connections"], row.get("adapted", 0)) if n], default="all")
        lines.append(
            f"  {row['state']}, weight {row['weight']} of 1000, rate {row['rate']} of 1000, connections "
            f"{at_once}, daily cap {cap}"
        )
    for row in found["suspensions"]:
        lines.append(f"  nothing is sent until {time_text(row['until_ms'])}: {row['reason']}")
    if not (found["allowances"] or found["suspensions"] or found["region_error"]):
        lines.append("  the provider's profile, unchanged")
    return lines


def _order_lines(row: dict[str, Any]) -> list[str]:
    if row["action"] == "adapt":
        return [
            f"  connections adapted to its answers: {row['connections']} since {time_text(row['since_ms'])}",
            f"    because {row['reply']}",
        ]
    if not row["rule"]:
        return [f"  no order holds any more; the rate is back at {row['rate_permille'] / 10:.0f} % and rises"]
    lines = [
        f"  rule {row['rule']}: {row['action']}, scope {row['scope']}, since {time_text(row['since_ms'])}, until "
        f"{time_text(row['until_ms'])}",
        f"    because of the reply: {row['reply']}",
    ]
    rule = row["written"]
    if rule is not None:
        lines.append(
            f"    pattern {rule['pattern']!r}, threshold {rule['threshold']}, duration {rule['duration']}"
        )
    lines.append(f"    rate {row['rate_permille'] / 10:.0f} %, connections {row['connections']}")
    return lines


def time_text(at_ms: int) -> str:
    """Unix milliseconds as UTC text."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _listed(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if row["action"] == "adapt":
            lines.append(
                f"{row['source']} at {row['site']}: connections adapted to its answers: {row['connections']}"
            )
            lines.append(f"    {row['reply']}")
            continue
        what = f"{row['rule']}, {row['action']} (scope {row['scope']})" if row["rule"] else "rate rises again"
        until = f" until {time_text(row['until_ms'])}" if row["until_ms"] else ""
        now = f"rate {row['rate_permille'] / 10:.0f} %, connections {row['connections']}"
        lines.append(f"{row['source']} at {row['site']}: {what}{until}; {now}")
        if row["reply"]:
            lines.append(f"    {row['reply']}")
    return lines
