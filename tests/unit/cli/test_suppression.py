import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.values.suppression import Reason, Suppression
from tests.unit.cli.support import MemoryFleet, invoke


@pytest.fixture
def fleet() -> MemoryFleet:
    return MemoryFleet()


def listed(fleet: MemoryFleet, *options: str) -> list[dict[str, str]]:
    result = invoke("suppression", "list", *options, fleet=fleet)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_addresses_go_onto_a_list_and_off_it(fleet: MemoryFleet) -> None:
    result = invoke(
        "suppression", "add", "A@example.com", "b@example.com", "--note", "asked by phone", fleet=fleet
    )
    assert result.output.strip() == "2 added, 0 were on the list before"
    assert invoke("suppression", "add", "a@example.com", fleet=fleet).output.startswith("0 added, 1")
    rows = listed(fleet)
    assert {row["address"] for row in rows} == {"a@example.com", "b@example.com"}
    assert {(row["reason"], row["note"]) for row in rows} == {("manual", "asked by phone")}
    result = invoke("suppression", "remove", "a@example.com", "c@example.com", fleet=fleet)
    assert result.output.strip() == "1 removed, 1 were not on the list"
    assert [row["address"] for row in listed(fleet)] == ["b@example.com"]
    assert [row["reason"] for row in listed(fleet, "--address", "A@example.com", "--all")] == ["removed"]


def test_lists_of_tenants_and_streams(fleet: MemoryFleet) -> None:
    for options in ([], ["--tenant", "t"], ["--tenant", "t", "--stream", "marketing"]):
        assert invoke("suppression", "add", "a@example.com", *options, fleet=fleet).exit_code == 0
    assert len(listed(fleet)) == 3
    assert len(listed(fleet, "--tenant", "t")) == 2
    assert len(listed(fleet, "--tenant", "")) == 1
    assert len(listed(fleet, "--stream", "marketing")) == 1
    assert listed(fleet, "--reason", "complaint") == []
    result = invoke("suppression", "list", "--json", "--stream", "marketing", fleet=fleet)
    assert json.loads(result.stdout)["tenant"] == "t"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "nobody"], "'nobody': no @"),
        (["add", "a@example.com", "--stream", "marketing"], "--stream needs --tenant"),
        (["add", "a@example.com", "--reason", "removed"], "removed"),
        (["list", "--address", "x"], "no @"),
        (["remove"], "Missing argument"),
    ],
)
def test_wrong_usage(fleet: MemoryFleet, arguments: list[str], says: str) -> None:
    result = invoke("suppression", *arguments, fleet=fleet)
    assert result.exit_code == 2
    assert says in result.output


def test_import_and_export(tmp_path: Path, fleet: MemoryFleet) -> None:
    path = tmp_path / "old.csv"
    path.write_text("email,reason\n" + "".join(f"u{n}@example.com,complaint\n" for n in range(5000)) + "x,\n")
    result = invoke("suppression", "import", path, "--tenant", "t", fleet=fleet)
    assert result.exit_code == 1
    assert "5000 rows: 5000 added, 0 were on their list before; 1 bad rows" in result.output
    report = list(csv.DictReader((tmp_path / "old.bad-rows.csv").open()))
    assert [(row["line"], row["reason"]) for row in report] == [("5002", "no @")]
    assert all(row.reason is Reason.COMPLAINT and row.tenant == "t" for row in fleet.suppressed.values())
    exported = tmp_path / "new.csv"
    assert invoke("suppression", "export", exported, fleet=fleet).exit_code == 0
    other = MemoryFleet()
    result = invoke("suppression", "import", exported, fleet=other)
    assert result.exit_code == 0, result.output
    assert other.suppressed == fleet.suppressed
    assert "0 added" in invoke("suppression", "import", exported, fleet=other).output


def test_an_export_that_fails_leaves_the_former_one(tmp_path: Path) -> None:
    class Broken(MemoryFleet):
        async def suppressions(self, address: str = "") -> AsyncIterator[Suppression]:
            async for row in super().suppressions(address):
                yield row
                raise ConnectionError("no region answers")

    fleet = Broken()
    invoke("suppression", "add", "a@example.com", fleet=fleet)
    path = tmp_path / "all.csv"
    path.write_text("former")
    assert invoke("suppression", "export", path, fleet=fleet).exit_code == 1
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_an_import_does_not_remove_what_it_reads(tmp_path: Path, fleet: MemoryFleet) -> None:
    path = tmp_path / "list.csv"
    path.write_text("address\na@example.com\nx\n")
    result = invoke("suppression", "import", path, "--bad-rows", path, fleet=fleet)
    assert (result.exit_code, "--bad-rows" in result.output) == (2, True)
    assert path.read_text() == "address\na@example.com\nx\n"
