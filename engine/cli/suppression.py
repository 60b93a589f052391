"""`sendfleet suppression`: the addresses that are not sent to. A change reaches all regions of the running fleet."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from engine.campaign.bad_rows import BadRowFile
from engine.campaign.recipients import BadRow
from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import Failure, check_report, fleet_option, notes, output
from engine.suppression.table import Defaults, fields_of, header_line, read_table, row_line
from engine.values.address import AddressError, parse_address
from engine.values.clock import SystemClock
from engine.values.stream import Stream
from engine.values.suppression import Reason, Suppression, compared, make

BATCH = 2000
REASONS = [str(reason) for reason in Reason if reason is not Reason.REMOVED]
stream_choice = click.Choice([str(stream) for stream in Stream])
tenant_option = click.option(
    "--tenant", default="", help="The list of this tenant [default: the global list]."
)
stream_option = click.option("--stream", type=stream_choice, help="The list of this stream of the tenant.")
reason_option = click.option("--reason", type=click.Choice(REASONS), default="manual", show_default=True)
note_option = click.option("--note", default="", help="Free text that is kept with the entry.")


def build_suppression(port_factory: PortFactory) -> click.Group:
    @click.group("suppression")
    def suppression() -> None:
        """Addresses that are not sent to: global, of a tenant, or of one stream of a tenant."""

    @suppression.command("list")
    @fleet_option
    @click.option("--address", default="", help="Only this address.")
    @click.option("--tenant", help="Only the lists of this tenant; empty for the global list.")
    @click.option("--stream", type=stream_choice, help="Only the lists of this stream.")
    @click.option("--reason", type=click.Choice(REASONS), help="Only entries with this reason.")
    @click.option("--all", "with_removed", is_flag=True, help="Also what was taken off.")
    @click.option("--json", "as_json", is_flag=True, default=False, help="JSON lines.")
    def list_command(
        fleet_path: Path,
        address: str,
        tenant: str | None,
        stream: str | None,
        reason: str | None,
        with_removed: bool,
        as_json: bool,
    ) -> None:
        """Print the entries, in no order, as CSV or as JSON lines."""
        wanted = Filter(tenant, stream, reason, with_removed)
        rows = port_factory(fleet_path).suppressions(_compared(address) if address else "")
        if not as_json:
            click.echo(header_line(), nl=False)
        asyncio.run(_print(rows, wanted, as_json, sys.stdout))

    @suppression.command("add")
    @click.argument("addresses", nargs=-1, required=True)
    @fleet_option
    @tenant_option
    @stream_option
    @reason_option
    @note_option
    def add_command(
        addresses: tuple[str, ...],
        fleet_path: Path,
        tenant: str,
        stream: str | None,
        reason: str,
        note: str,
    ) -> None:
        """Put addresses on a list."""
        rows = _rows(addresses, tenant, stream, Reason.parse(reason), note)
        changed = asyncio.run(_send(port_factory(fleet_path), rows))
        output().print(f"{changed} added, {len(rows) - changed} were on the list before")

    @suppression.command("remove")
    @click.argument("addresses", nargs=-1, required=True)
    @fleet_option
    @tenant_option
    @stream_option
    @note_option
    def remove_command(
        addresses: tuple[str, ...], fleet_path: Path, tenant: str, stream: str | None, note: str
    ) -> None:
        """Take addresses off one list; they stay on the others."""
        rows = _rows(addresses, tenant, stream, Reason.REMOVED, note)
        changed = asyncio.run(_send(port_factory(fleet_path), rows))
        output().print(f"{changed} removed, {len(rows) - changed} were not on the list")

    @suppression.command("import")
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @fleet_option
    @tenant_option
    @stream_option
    @reason_option
    @click.option(
        "--bad-rows", "bad_rows_path", type=click.Path(path_type=Path), help="Report of rows left out."
    )
    def import_command(
        file: Path,
        fleet_path: Path,
        tenant: str,
        stream: str | None,
        reason: str,
        bad_rows_path: Path | None,
    ) -> None:
        """Put the addresses of a CSV file on lists.

        Its columns are those of `export`, of which only `address` must be there; the options are for rows that leave
        theirs empty. Repeating an import changes nothing.
        """
        defaults = Defaults(
            SystemClock().wall_ms(), tenant, Stream.parse(stream) if stream else None, Reason.parse(reason)
        )
        _check_list(tenant, stream)
        bad_rows_path = bad_rows_path or file.with_suffix(".bad-rows.csv")
        check_report(bad_rows_path, file)
        with BadRowFile(bad_rows_path) as bad_rows:
            read, changed = asyncio.run(
                _import(port_factory(fleet_path), read_table(file, defaults), bad_rows)
            )
        output().print(
            f"{read} rows: {changed} added, {read - changed} were on their list before; "
            f"{bad_rows.count} bad rows"
        )
        if bad_rows.count:
            raise Failure(f"{bad_rows.count} rows were left out: see {bad_rows.path}")

    @suppression.command("export")
    @click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
    @fleet_option
    def export_command(file: Path, fleet_path: Path) -> None:
        """Write all entries as CSV to FILE, or to standard output.

        A file that is there is replaced when all of them have been written.
        """
        rows = port_factory(fleet_path).suppressions()
        if file == Path("-"):
            count = _export(rows, sys.stdout)
        else:
            with (
                _replacing(file.resolve())
                if file.is_file() or not file.exists()
                else file.open("w") as opened
            ):
                count = _export(rows, opened)
        notes().print(f"{count} entries")

    return suppression


class Filter:
    """Which rows are shown."""

    def __init__(
        self,
        tenant: str | None = None,
        stream: str | None = None,
        reason: str | None = None,
        with_removed: bool = False,
    ) -> None:
        self._tenant = tenant
        self._stream = None if stream is None else int(Stream.parse(stream))
        self._reason = None if reason is None else Reason.parse(reason)
        self._with_removed = with_removed

    def shows(self, row: Suppression) -> bool:
        return (
            (row.is_live or self._with_removed)
            and self._tenant in (None, row.tenant)
            and self._stream in (None, row.stream)
            and self._reason in (None, row.reason)
        )


def _export(rows: AsyncIterator[Suppression], file: TextIO) -> int:
    file.write(header_line())
    return asyncio.run(_print(rows, Filter(), False, file))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A new file in place of another, or the other one as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            if path.exists():
                part.chmod(path.stat().st_mode)
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


async def _print(rows: AsyncIterator[Suppression], wanted: Filter, as_json: bool, file: TextIO) -> int:
    count = 0
    async for row in rows:
        if wanted.shows(row):
            file.write(json.dumps(fields_of(row)) + "\n" if as_json else row_line(row))
            count += 1
    return count


async def _send(port: FleetPort, rows: Sequence[Suppression]) -> int:
    changed = 0
    for start in range(0, len(rows), BATCH):
        changed += await port.suppress(rows[start : start + BATCH])
    return changed


async def _import(
    port: FleetPort, rows: Iterable[Suppression | BadRow], bad_rows: BadRowFile
) -> tuple[int, int]:
    read = changed = 0
    batch: list[Suppression] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows.write(row)
            continue
        read += 1
        batch.append(row)
        if len(batch) == BATCH:
            changed += await _send(port, batch)
            batch = []
    return read, changed + await _send(port, batch)


def _rows(
    addresses: Sequence[str], tenant: str, stream: str | None, reason: Reason, note: str
) -> list[Suppression]:
    _check_list(tenant, stream)
    at_ms = SystemClock().wall_ms()
    number = Stream.parse(stream) if stream else None
    rows = []
    for address in addresses:
        try:
            rows.append(make(address, tenant=tenant, stream=number, reason=reason, at_ms=at_ms, note=note))
        except AddressError as error:
            raise click.UsageError(f"address {address!r}: {error}") from None
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    return rows


def _check_list(tenant: str, stream: str | None) -> None:
    if stream and not tenant:
        raise click.UsageError("--stream needs --tenant, whose stream it is")


def _compared(address: str) -> str:
    try:
        return compared(parse_address(address))
    except AddressError as error:
        raise click.UsageError(f"--address {address!r}: {error}") from None
