"""`sendfleet top`: what the fleet does, second by second."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import NumberRange, fleet_option, output
from engine.metrics.look import History, Look

FIRST_LOOK_S = 1.0
WINDOW_S = 60.0
RATES = ("delivered", "deferred", "bounced", "expired")
STATES = ("ready", "held", "scheduled", "in_flight")


def build_top(port_factory: PortFactory) -> click.Command:
    @click.command("top")
    @fleet_option
    @click.option("--interval", default=2.0, show_default=True, type=NumberRange(min=0.5), help="Seconds.")
    @click.option("--once", is_flag=True, help="Print one page and end: rates are those of one second.")
    def top(fleet_path: Path, interval: float, once: bool) -> None:
        """Show rates, waiting mail, sessions and alerts by region and provider, until interrupted."""
        asyncio.run(_once(port_factory(fleet_path)) if once else _watch(port_factory(fleet_path), interval))

    return top


class Page:
    """Looks at a fleet, one after the other."""

    def __init__(self, port: FleetPort) -> None:
        self._port = port
        self._histories: dict[str, History] = {}

    async def look(self) -> RenderableType:
        figures = await self._port.figures()
        now_s = time.monotonic()
        looks = {
            region: self._histories.setdefault(region, History(WINDOW_S)).look(points, now_s)
            for region, points in figures["regions"].items()
        }
        shard_of = {r.name: r.shard_of for r in self._port.config.regions if r.shard_of is not None}
        return render({_place(name, shard_of): look for name, look in looks.items()}, figures["alerts"])


def _place(name: str, shard_of: Mapping[str, str]) -> str:
    return f"{shard_of[name]}/{name}" if name in shard_of else name


async def _once(port: FleetPort) -> None:
    page = Page(port)
    await page.look()
    await asyncio.sleep(FIRST_LOOK_S)
    output().print(await page.look())


async def _watch(port: FleetPort, interval_s: float) -> None:
    page = Page(port)
    with Live(await page.look(), console=output(), screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval_s)
            live.update(await page.look(), refresh=True)


def render(looks: Mapping[str, Look], alerts: Sequence[Mapping[str, Any]] | None) -> RenderableType:
    """One page: regions, providers, alerts."""
    return Group(_regions(looks), Text(), _providers(looks), Text(), *_alerts(alerts))


def _table(names: Iterable[str]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left")
    return table


def _regions(looks: Mapping[str, Look]) -> Table:
    table = _table(
        ("region", "accepted/s", *(f"{name}/s" for name in RATES), "queued", "cpu", "memory", "disk free")
    )
    for region, look in looks.items():
        if not look.value("sendfleet.region.up"):
            table.add_row(region, "[red]does not answer[/red]")
            continue
        memory = sum(value for _, value in look.rows("process.memory.usage"))
        cpu = sum(value for _, value in look.increases("process.cpu.time"))
        table.add_row(
            region,
            _rate(look, sum(value for _, value in look.increases("sendfleet.messages.accepted"))),
            *(_rate(look, _outcomes(look, name)) for name in RATES),
            f"{look.value('sendfleet.messages.queued'):,.0f}",
            f"{cpu / look.span_s:.0%}" if look.span_s else "",
            f"{memory / 2**20:,.0f} MiB",
            f"{look.value('sendfleet.spool.disk.free') / 2**30:,.1f} GiB",
        )
    return table


def _providers(looks: Mapping[str, Look]) -> Table:
    names = (
        "provider",
        "region",
        "delivered/s",
        "deferred/s",
        *STATES,
        "oldest",
        "sessions",
        "suspended",
        "out",
    )
    table = _table(names)
    for region, look in looks.items():
        waiting: dict[tuple[str, str], float] = {}
        for (_, provider, state), value in look.rows("sendfleet.messages.waiting"):
            waiting[provider, state] = waiting.get((provider, state), 0.0) + value
        told = {provider for (_, provider, _), _ in look.rows("sendfleet.outcomes")}
        for provider in sorted(told | {name for name, _ in waiting}):
            ages = [v for (_, name), v in look.rows("sendfleet.messages.ready.age") if name == provider]
            opened = _of_provider(look, "sendfleet.sessions.open", provider)
            limit = _of_provider(look, "sendfleet.sessions.limit", provider)
            out = sum(
                value
                for (name, _, state), value in look.rows("sendfleet.source.sites")
                if (name, state) == (provider, "removed")
            )
            table.add_row(
                provider,
                region,
                _rate(look, _outcomes(look, "delivered", provider)),
                _rate(look, _outcomes(look, "deferred", provider)),
                *(f"{waiting.get((provider, state), 0):,.0f}" for state in STATES),
                f"{max(ages):,.0f} s" if ages else "",
                f"{opened:.0f}/{limit:.0f}" if limit else "",
                f"{_of_provider(look, 'sendfleet.suspensions', provider):.0f}",
                f"{out:.0f}",
            )
    return table


def _of_provider(look: Look, metric: str, provider: str) -> float:
    return sum(value for labels, value in look.rows(metric) if labels[0] == provider)


def _outcomes(look: Look, outcome: str, provider: str = "") -> float:
    return sum(
        value
        for (_, name, kind), value in look.increases("sendfleet.outcomes")
        if kind == outcome and provider in ("", name)
    )


def _rate(look: Look, increase: float) -> str:
    return f"{increase / look.span_s:,.0f}" if look.span_s else ""


def _alerts(alerts: Sequence[Mapping[str, Any]] | None) -> list[RenderableType]:
    if alerts is None:
        return [Text("this fleet does not watch itself: alerts.enabled is false")]
    if not alerts:
        return [Text("no alerts", style="green")]
    return [
        Text(
            f"{row['severity']} {row['alert']}, {row['region']}: {row['reason']}",
            style="red" if row["severity"] == "critical" else "yellow",
        )
        for row in alerts
    ]
