"""`sendfleet bounces`: what the classifier makes of replies.

`unknown` reads the spools on this machine and needs no running fleet; beside a running one the counts are up to five
seconds old.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table

from engine.bounces.classifier import shipped_classifier
from engine.bounces.key_files import KeyFileError, add_key, drop_last_key, use_last_key, write_key
from engine.bounces.rules import parse_sample
from engine.bounces.unknown import STATE_KEY, UnknownReplies
from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.spool.reader import SpoolReader
from engine.values.outcome import OutcomeKind, Scope


@click.group("bounces")
def bounces_group() -> None:
    """What replies and bounces mean."""


@bounces_group.command("unknown")
@fleet_option
@click.option("--json", "as_json", is_flag=True, help="All rows as JSON.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Rows of the table.")
def unknown_command(fleet_path: Path, as_json: bool, limit: int) -> None:
    """Replies that no rule knows, the most frequent first."""
    config = read_fleet(fleet_path)
    rows = []
    is_seen = False
    for region in config.regions:
        path = Path(config.spool.directory) / region.name
        if not path.is_dir():
            notes().print(f"[yellow]region {region.name}: no spool on this machine[/yellow]")
            continue
        reader = SpoolReader(path)
        try:
            replies = UnknownReplies(reader.state(STATE_KEY))
        finally:
            reader.close()
        is_seen = True
        rows += [(region.name, wording, row) for wording, row in replies.rows()]
    if not is_seen:
        raise Failure("no region has its spool on this machine: nothing is known about its replies")
    rows.sort(key=lambda row: -row[2].count)
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "region": region,
                        "wording": wording,
                        "count": row.count,
                        "first_ms": row.first_ms,
                        "last_ms": row.last_ms,
                        "sample": row.sample,
                    }
                    for region, wording, row in rows
                ],
                indent=2,
            )
        )
        return
    table = Table(box=None, padding=(0, 1))
    for column in ("count", "region", "last", "reply"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for name, wording, row in rows[:limit]:
        last = datetime.fromtimestamp(row.last_ms / 1000, UTC)
        table.add_row(str(row.count), name, f"{last:%Y-%m-%d %H:%M}", wording)
    output().print(table if rows else "every reply so far was known")


@bounces_group.command("new-key")
@click.argument("path", type=click.Path(path_type=Path))
def new_key_command(path: Path) -> None:
    """Make a key for tokens.keys of fleet.yaml, readable by its owner only."""
    try:
        write_key(path)
    except FileExistsError:
        raise Failure(f"{path} exists: a key is never replaced, make another beside it") from None
    output().print(f"{path}: copy it to every node, and name it in tokens.keys with a number of its own")


@bounces_group.command("add-key")
@click.argument("path", type=click.Path(path_type=Path))
def add_key_command(path: Path) -> None:
    """Put a new key into a key file, at its end: it is good, and does not sign yet."""
    _change(add_key, path, "copy it to every node; when all have read it (tokens.reload), `use-key`")


@bounces_group.command("use-key")
@click.argument("path", type=click.Path(path_type=Path))
def use_key_command(path: Path) -> None:
    """Have the last key of a key file sign."""
    _change(use_last_key, path, "copy it to every node; `drop-key` when the old key's tokens have expired")


@bounces_group.command("drop-key")
@click.argument("path", type=click.Path(path_type=Path))
def drop_key_command(path: Path) -> None:
    """Take the last key out of a key file: what it signed is not known any more."""
    _change(drop_last_key, path, "copy it to every node")


def _change(change: Callable[[Path], None], path: Path, then: str) -> None:
    try:
        change(path)
    except KeyFileError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    output().print(f"{path}: {then}")


@bounces_group.command("explain")
@click.argument("reply")
def explain_command(reply: str) -> None:
    """What one reply means, and which rule says so. REPLY is as in `550 5.1.1 User unknown`."""
    parsed = parse_sample(reply)
    if not str(parsed).strip() or not (parsed.code == 0 or 400 <= parsed.code < 600):
        raise click.UsageError(
            f"reply {reply!r}: allowed is a refusal: a code from 400 to 599, a status, a text"
        )
    kind = OutcomeKind.BOUNCED if parsed.code >= 500 else OutcomeKind.DEFERRED
    found = shipped_classifier().classify(kind, Scope.RECIPIENT, parsed)
    hardness = "hard" if found.hard else "soft"
    click.echo(f"{found.category}, {hardness}, scope {found.scope}, rule {found.rule or 'none'}")
