"""`sendfleet doctor`: what mailbox providers will find amiss about a domain, before its mail is sent."""

import asyncio
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from engine.campaign.spec import load_campaign
from engine.cli.terminal import Failure, fleet_option, output, read_fleet
from engine.config.schema import FleetConfig
from engine.config.types import is_host_name
from engine.doctor.case import Case, Sender
from engine.doctor.examine import examine, summary, worst
from engine.doctor.finding import Finding, Level
from engine.doctor.probe import Probe
from engine.doctor.questions import Questions
from engine.routing.hosts import Hosts, is_public
from engine.routing.resolver import build_resolver
from engine.values.address import AddressError, parse_address
from engine.values.clock import SystemClock

_COLOURS = {Level.PASS: "green", Level.NOTE: "dim", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command("doctor")
@click.argument("domain")
@fleet_option
@click.option(
    "--return-path",
    help="Domain of the envelope sender [default: that of bounces.return_paths which suits DOMAIN, or DOMAIN].",
)
@click.option(
    "--selector", "selectors", multiple=True, help="A DKIM selector to look at besides the fleet's own."
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="SOURCE=IP",
    help="The public address of a source behind NAT.",
)
@click.option(
    "--campaign",
    "campaigns",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A campaign.yaml whose unsubscribe headers are looked at.",
)
@click.option(
    "--probe", is_flag=True, help="Connect to the domain's MX hosts (STARTTLS) and fetch its MTA-STS policy."
)
@click.option("--json", "as_json", is_flag=True, help="All findings as JSON.")
def doctor_command(
    domain: str,
    fleet_path: Path,
    return_path: str | None,
    selectors: tuple[str, ...],
    addresses: tuple[str, ...],
    campaigns: tuple[Path, ...],
    probe: bool,
    as_json: bool,
) -> None:
    """Examine the sending DOMAIN: DNS records, sources, and the rules that providers publish for bulk senders.

    DOMAIN is that of the From header. Nothing is sent or changed. Exit status: 0 nothing failed (warnings may be
    there), 1 something failed or could not be found out, 2 wrong usage.
    """
    config = read_fleet(fleet_path)
    try:
        name = _domain(domain)
        bounces = _domain(return_path) if return_path else _return_path(config, name)
        senders, hidden = _senders(config, addresses)
        wrong = next((s for s in selectors if not is_host_name(s)), None)
        if wrong is not None:
            raise ValueError(f"--selector {wrong!r}: allowed are letters, digits, hyphens and dots, as in s1")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    questions = Questions(build_resolver(config.resolver))
    case = Case(
        name,
        bounces,
        config,
        questions,
        senders,
        config.dkim,
        selectors,
        {str(path): load_campaign(path) for path in campaigns},
    )
    prober = None
    if probe:
        allowed = Hosts(config, questions, SystemClock()).is_allowed
        prober = Probe(questions, allowed, helo=config.sources[0].ehlo)
    findings = [*hidden, *asyncio.run(examine(case, prober))]
    if as_json:
        click.echo(_json(case, findings))
    else:
        _show(case, findings)
    if worst(findings) is Level.FAIL:
        count = sum(finding.level is Level.FAIL for finding in findings)
        raise Failure(f"{name}: {count} failed")


def _domain(text: str) -> str:
    """In ASCII form and lower case; ValueError."""
    if "@" in text:
        raise ValueError(f"{text!r}: allowed is a domain, as in example.com, without an address before it")
    try:
        return parse_address(f"x@{text.rstrip('.')}").domain
    except AddressError as error:
        raise ValueError(f"{text!r}: allowed is a domain, as in example.com: {error}") from None


def _return_path(config: FleetConfig, domain: str) -> str:
    """The fleet's bounce domain for the domain: the one that is closest to it, else the first, else itself."""
    domains = [path.domain for path in config.bounces.return_paths]
    near = [d for d in domains if d == domain or d.endswith(f".{domain}") or domain.endswith(f".{d}")]
    return next(iter([*near, *domains, domain]))


def _senders(config: FleetConfig, addresses: Sequence[str]) -> tuple[tuple[Sender, ...], list[Finding]]:
    """The sources as receivers see them, and a finding for each that nobody outside can see. ValueError."""
    given = {}
    known = {source.name for source in config.sources}
    for text in addresses:
        name, _, ip = text.partition("=")
        if name not in known:
            raise ValueError(f"--address {text}: allowed are the sources {', '.join(sorted(known))}")
        try:
            given[name] = str(ipaddress.ip_address(ip))
        except ValueError:
            raise ValueError(f"--address {text}: allowed is SOURCE=IP") from None
    senders, hidden = [], []
    lenient = config.resolver.private_addresses == "allow"
    for source in config.sources:
        ip = given.get(source.name, source.ip)
        if lenient or source.name in given or is_public(ipaddress.ip_address(ip)):
            senders.append(Sender(source.name, ip, source.ehlo))
        else:
            why = (
                "not a public address: receivers see another one, or none. Not examined; give it with "
                f"--address {source.name}=IP"
            )
            hidden.append(Finding("source", f"{source.name} {ip}", Level.WARN, why))
    return tuple(senders), hidden


def _show(case: Case, findings: Sequence[Finding]) -> None:
    table = Table(
        title=f"{case.domain} with the return path {case.return_path}, as a bulk sender",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    for heading in ("check", "result", "of", "why"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        musts = dict.fromkeys(demand.provider for demand in finding.demands if demand.is_must)
        who = f" [{', '.join(musts)}]" if musts else ""
        table.add_row(
            finding.check,
            Text(finding.level.value, style=_COLOURS[finding.level]),
            _plain(finding.subject),
            _plain(finding.why + who),
        )
    console = output()
    console.print(table)
    lines = list(dict.fromkeys(line for finding in findings for line in finding.publish))
    if lines:
        console.print("\nto publish, if the finding above it is right (adapt addresses to yours):")
        for line in lines:
            console.print(_plain(f"  {line}"), soft_wrap=True)
    console.print()
    unknown = dict.fromkeys(finding.check for finding in findings if not finding.is_known)
    for provider, checks in summary(findings).items():
        if checks:
            state = f"[red]not met: {', '.join(checks)}[/red]"
        elif unknown:
            state = f"[yellow]not known, the DNS does not answer: {', '.join(unknown)}[/yellow]"
        else:
            state = "[green]met, as far as seen[/green]"
        console.print(f"published rules of {provider}: {state}")


def _plain(text: str) -> Text:
    """Without the control characters of a stranger's record, and not read as markup."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _json(case: Case, findings: Sequence[Finding]) -> str:
    return json.dumps(
        {
            "domain": case.domain,
            "return_path": case.return_path,
            "level": worst(findings).value,
            "findings": [finding.plain() for finding in findings],
            "not_met": summary(findings),
        },
        indent=2,
    )
