"""Whose mail each source may carry, by tenancy, stream and class."""

import pytest

from engine.config.load import ConfigError
from engine.reputation.floor import Candidate, find_breaches
from engine.reputation.serving import bit_of, find_serving
from engine.values.quality import Quality
from engine.values.stream import Stream
from tests.support.fleets import fleet, fleet_data

NEW, GOOD, POOR = Quality
MARKETING = int(Stream.MARKETING)


def sources(*changes: dict[str, object]) -> list[dict[str, object]]:
    base = fleet_data()["sources"][0]
    return [
        base | {"name": f"eu-{n}", "ip": f"127.0.0.{20 + n}"} | change for n, change in enumerate(changes)
    ]


def classes(
    *changes: dict[str, object], stream: int = MARKETING, poor: str = ""
) -> list[tuple[set[Quality], set[Quality]]]:
    """(serves, lends) of each source in a stream."""
    config = fleet(sources=sources(*changes))
    found = find_serving(dict(enumerate(config.sources)), lambda name: POOR if name == poor else NEW)
    return [
        (
            {q for q in Quality if row.serves & bit_of(stream, q)},
            {q for q in Quality if row.lends & bit_of(stream, q)},
        )
        for row in found.values()
    ]


def test_without_a_pool_apart_poor_tenants_only_borrow() -> None:
    assert classes({}) == [({NEW, GOOD}, {NEW, GOOD, POOR})]


def test_a_class_that_is_named_goes_over_those_that_name_it_only() -> None:
    found = [serves for serves, _ in classes({}, {"quality": ["poor"]}, {"quality": ["good", "poor"]})]
    assert found == [{NEW}, {POOR}, {GOOD, POOR}]


def test_a_name_counts_in_the_streams_of_its_source_only() -> None:
    apart = {"streams": ["marketing"], "quality": ["poor"]}
    assert [serves for serves, _ in classes({}, apart)] == [{NEW, GOOD}, {POOR}]
    assert classes({}, apart, stream=int(Stream.TRANSACTIONAL)) == [
        ({NEW, GOOD}, {NEW, GOOD, POOR}),
        (set(), set()),
    ]


def test_the_hybrid_source_of_a_poor_tenant_is_the_last_resort_of_the_others() -> None:
    rows = ({}, {"tenancy": {"hybrid": "acme"}})
    assert [serves for serves, _ in classes(*rows)] == [{NEW, GOOD}, {NEW, GOOD}]
    assert [serves for serves, _ in classes(*rows, poor="acme")] == [{NEW, GOOD}, set()]
    assert classes(rows[1], poor="acme") == [(set(), {NEW, GOOD, POOR})]


def test_a_class_without_a_source_is_an_error() -> None:
    with pytest.raises(ConfigError, match="for tenants of the class poor"):
        fleet(sources=sources({"quality": ["good", "new"]}))
    fleet(sources=sources({"quality": ["good", "new"]}, {}))


def test_each_class_has_a_floor_of_its_own() -> None:
    config = fleet(sources=sources({}, {"quality": ["poor"]}, {"tenancy": {"dedicated": "acme"}}))
    found = find_serving(dict(enumerate(config.sources)), lambda _: NEW)

    def breaches(*serving: bool) -> list[tuple[str, int | None]]:
        rows = [
            Candidate(
                n,
                frozenset({Stream.MARKETING}),
                serves=serving[n],
                score=n,
                classes=found[n].serves | found[n].lends,
                tenant="acme" if n == 2 else "",
            )
            for n in range(3)
        ]
        return [(breach.whose, breach.kept) for breach in find_breaches(rows, "trickle")]

    assert breaches(True, True, True) == []
    assert breaches(True, False, False) == [("tenants of the class poor", 1)]
    assert [whose for whose, _ in breaches(False, True, True)] == [
        "tenants of the class new",
        "tenants of the class good",
    ]
    assert breaches(False, False, False)[-1] == ("the tenant acme", 2)
