"""`sendfleet send`: a campaign.yaml, or messages that exist already (.eml files and directories of them).

Sending again is always safe: what a region has accepted is not accepted twice. So after any interruption the
same command goes on where it stopped.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from engine.campaign.attachments import RenderError
from engine.campaign.bad_rows import BadRowFile
from engine.campaign.chunks import cut_chunks
from engine.campaign.eml import EmlError, EmlOptions, find_eml, read_eml
from engine.campaign.engagement import read_in_order
from engine.campaign.giving import SendReport
from engine.campaign.recipients import BadRow, Recipient, RecipientFile
from engine.campaign.render import Renderer
from engine.campaign.sender import CampaignSender
from engine.campaign.spec import Campaign, load_campaign
from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import Failure, Interrupted, check_report, fleet_option, notes, output
from engine.config.schema import FleetConfig
from engine.values.address import AddressError, parse_address
from engine.values.clock import SystemClock
from engine.values.engagement import Engagement
from engine.values.ids import format_id
from engine.values.message import ItemError, Receipt
from engine.values.stream import Stream
from engine.values.submission import batch_key_of

T = TypeVar("T")

PROGRESS_S = 0.1
EML_CONCURRENCY = 32
FIRST_ID = 1 << 48 | 1
SAMPLE_LINK = "https://unsubscribe.example/sample"  # of a dry run, which knows no fleet


def build_send(port_factory: PortFactory) -> click.Command:
    @click.command()
    @click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
    @fleet_option
    @click.option("--dry-run", is_flag=True, help="Check everything, print the first message, send nothing.")
    @click.option(
        "--bad-rows",
        "bad_rows_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Report of rows that are left out [default: beside the recipients, NAME.bad-rows.csv].",
    )
    @click.option("--sender", help="Envelope sender of .eml files; empty for the null reverse-path.")
    @click.option("--recipient", "recipients", multiple=True, help="Envelope recipient of .eml files.")
    @click.option("--stream", default="transactional", show_default=True, help="Stream of .eml files.")
    @click.option("--tenant", default="default", show_default=True, help="Tenant of .eml files.")
    @click.option("--campaign", default="", help="Campaign of .eml files; another one sends them again.")
    def send(
        paths: tuple[Path, ...],
        fleet_path: Path,
        dry_run: bool,
        bad_rows_path: Path | None,
        sender: str | None,
        recipients: tuple[str, ...],
        stream: str,
        tenant: str,
        campaign: str,
    ) -> None:
        """Send a campaign.yaml, or .eml files and directories of them.

        Nobody is sent twice: the same command after an interruption goes on where it stopped.
        """
        if any(path.suffix in (".yaml", ".yml") for path in paths):
            if len(paths) > 1:
                raise click.UsageError("one campaign.yaml at a time, and no other files with it")
            _send_campaign(load_campaign(paths[0]), fleet_path, port_factory, dry_run, bad_rows_path)
            return
        try:
            options = EmlOptions(
                sender=parse_address(sender).text if sender else sender,
                recipients=tuple(parse_address(recipient).text for recipient in recipients),
                stream=Stream.parse(stream),
                tenant=tenant,
                campaign=campaign,
            )
        except AddressError as error:
            raise click.UsageError(f"--sender or --recipient: {error}") from None
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        _send_eml(paths, options, fleet_path, port_factory, dry_run)

    return send


# -- campaigns


def _send_campaign(
    campaign: Campaign, fleet_path: Path, port_factory: PortFactory, dry_run: bool, bad_rows_path: Path | None
) -> None:
    file = RecipientFile(
        campaign.recipients_path,
        format=campaign.format,
        address_column=campaign.address_column,
        delimiter=campaign.delimiter,
    )
    bad_rows_path = bad_rows_path or campaign.recipients_path.with_suffix(".bad-rows.csv")
    check_report(bad_rows_path, campaign.recipients_path)
    # the file's columns are compared with the template before anything is done
    rows = read_in_order(file, campaign.field_names, campaign.engagement)
    with BadRowFile(bad_rows_path) as bad_rows:
        if dry_run:
            _try_out(campaign, rows, bad_rows)
            _report_bad_rows(bad_rows)
            return
        _render_first(campaign, file)
        port = port_factory(fleet_path)
        report = _run(_transmit(campaign, rows, file, port, bad_rows))
    template = campaign.template
    suppressed = f" ({report.suppressed} of them suppressed)" if report.suppressed else ""
    output().print(
        f"campaign {template.campaign}: {report.accepted} recipients accepted{suppressed}, "
        f"{report.skipped} accepted before, {report.refused} refused, "
        f"{bad_rows.count - report.refused} bad rows"
    )
    _report_engagement(campaign, report.classes)
    _report_degraded(report.degraded)
    for region, reason in report.waiting_for.items():
        notes().print(f"[yellow]other regions took the parts of region {region}: {escape(reason)}[/yellow]")
    _report_bad_rows(bad_rows)


async def _transmit(
    campaign: Campaign,
    rows: Iterator[Recipient | BadRow],
    file: RecipientFile,
    port: FleetPort,
    bad_rows: BadRowFile,
) -> SendReport:
    template = campaign.template
    fleet = port.config
    is_covered = bool(fleet.fleet.replicas)
    sender = CampaignSender(
        port,
        regions_of(fleet, template.stream),
        region_of={entry.name: entry.region for entry in fleet.regions} if is_covered else None,
    )
    chunks = cut_chunks(
        rows,
        tenant=template.tenant,
        campaign=template.campaign,
        field_names=campaign.field_names,
        refuse=bad_rows.write,
    )

    def refuse(line: int, error: ItemError) -> None:
        bad_rows.write(BadRow(line, f"refused by the region: {error.field}: {error.message}", error.value))

    task = asyncio.ensure_future(sender.send(template, campaign.field_names, chunks, refuse=refuse))
    with _progress() as progress:
        bar = progress.add_task(template.campaign, total=max(1, file.size_bytes), done="")
        while not task.done():
            await asyncio.wait([task], timeout=PROGRESS_S)
            waiting = " ".join(
                f"[yellow]waiting for {region}[/yellow]" for region in sender.report.waiting_for
            )
            progress.update(
                bar, completed=file.position_bytes, done=f"{sender.report.total} recipients {waiting}".strip()
            )
    return await task


def regions_of(config: FleetConfig, stream: Stream) -> list[str]:
    """The regions that have a source for a stream, in the order of the configuration."""
    able = {source.region for source in config.sources if str(stream) in [str(s) for s in source.streams]}
    regions = [region.name for region in config.regions if region.name in able]
    if not regions:
        raise Failure(f"no source of the fleet carries the stream {stream}")
    return regions


def _render_first(campaign: Campaign, file: RecipientFile) -> None:
    """Render one message, so that a template that works for nobody is refused before anything is sent; RenderError."""
    first = next((row for row in file.rows(campaign.field_names) if isinstance(row, Recipient)), None)
    if first is None:
        notes().print(f"[yellow]no recipients in {campaign.recipients_path}[/yellow]")
        return
    fields = dict(zip(campaign.field_names, first.values, strict=True))
    now_ms = SystemClock().wall_ms()
    try:
        Renderer(campaign.template).render(
            fields, first.address, FIRST_ID, now_ms, unsubscribe_url=SAMPLE_LINK
        )
    except RenderError as error:
        raise Failure(
            f"the message to {first.address} (line {first.line}) cannot be made: {error}"
        ) from error


def _try_out(campaign: Campaign, rows: Iterator[Recipient | BadRow], bad_rows: BadRowFile) -> None:
    """Render every message; print the first."""
    renderer = Renderer(campaign.template)
    now_ms = SystemClock().wall_ms()
    count = 0
    classes = Counter[Engagement]()
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows.write(row)
            continue
        fields = dict(zip(campaign.field_names, row.values, strict=True))
        message = renderer.render(fields, row.address, FIRST_ID, now_ms, unsubscribe_url=SAMPLE_LINK)
        if not count:
            click.echo(message.decode("utf-8", "replace").replace("\r\n", "\n"))
        count += 1
        classes[row.engagement] += 1
    output().print(f"dry run: {count} recipients, {bad_rows.count} bad rows; nothing was sent")
    _report_engagement(campaign, classes)


def _report_engagement(campaign: Campaign, classes: Mapping[Engagement, int]) -> None:
    if campaign.engagement is not None:
        counts = ", ".join(
            f"{classes.get(found, 0)} {found.name.lower()}"
            for found in (Engagement.ENGAGED, Engagement.NORMAL, Engagement.UNENGAGED)
        )
        output().print(f"in this order: {counts}")


def _report_degraded(count: int) -> None:
    if count:
        output().print(f"{count} without a copy in another region yet (fleet.degraded: accept_local)")


def _report_bad_rows(bad_rows: BadRowFile) -> None:
    if bad_rows.count:
        duplicates = f", {bad_rows.duplicates} of them repeated addresses" if bad_rows.duplicates else ""
        notes().print(
            f"[yellow]{bad_rows.count} rows were left out{duplicates}: see {bad_rows.path}[/yellow]"
        )


# -- messages that exist already


def _send_eml(
    paths: tuple[Path, ...], options: EmlOptions, fleet_path: Path, port_factory: PortFactory, dry_run: bool
) -> None:
    if dry_run:
        good, bad = 0, 0
        for path in find_eml(paths):
            try:
                message = read_eml(path, options)
            except EmlError as error:
                notes().print(f"[red]{error}[/red]")
                bad += 1
            else:
                output().print(f"{path}: from {message.sender or '<>'} to {', '.join(message.recipients)}")
                good += 1
        output().print(f"dry run: {good} messages, {bad} files that cannot be sent; nothing was sent")
        if bad:
            raise Failure(f"{bad} files cannot be sent")
        return
    counts = _run(_transmit_eml(paths, options, port_factory(fleet_path)))
    accepted, repeated, refused = counts["accepted"], counts["repeated"], counts["refused"]
    output().print(f"{accepted} messages accepted, {repeated} accepted before, {refused} refused")
    _report_degraded(counts["degraded"])
    if refused:
        raise Failure(f"{refused} messages were refused")


async def _transmit_eml(paths: tuple[Path, ...], options: EmlOptions, port: FleetPort) -> dict[str, int]:
    """Submit each file for itself: its region depends on nothing but its content.

    Returns how many messages were `accepted`, `repeated` (accepted before) and `refused`, and of how many a copy is
    missing (`degraded`).
    """
    counts = {"accepted": 0, "repeated": 0, "refused": 0, "degraded": 0}
    room = asyncio.Semaphore(EML_CONCURRENCY)

    async def submit(path: Path) -> None:
        try:
            message = read_eml(path, options)
            receipt = await port.submit([message], key=batch_key_of(options.tenant, message.key))
            _count(path, receipt, counts)
        except EmlError as error:
            notes().print(f"[red]{error}[/red]")
            counts["refused"] += 1
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            for path in find_eml(paths):
                await room.acquire()
                tasks.create_task(submit(path))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return counts


def _count(path: Path, receipt: Receipt, counts: dict[str, int]) -> None:
    if receipt.errors:
        for error in receipt.errors:
            notes().print(f"[red]{path}: {error.field} {error.value}: {error.message}[/red]")
        counts["refused"] += 1
        return
    counts["repeated" if receipt.repeated else "accepted"] += 1
    counts["degraded"] += receipt.degraded
    ids = " ".join(
        f"{format_id(id_)} (suppressed)" if id_ in receipt.suppressed else format_id(id_)
        for id_ in receipt.ids[0]
    )
    output().print(f"{path}: {ids}")


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[done]}"),
    )
    console = notes()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on where it stopped") from None
