import pickle
from pathlib import Path
from typing import Any

import pytest

from engine.config.checks import find_gaps
from engine.config.load import ConfigError, load_fleet, parse_fleet
from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.config.units import Rate
from engine.values.address import parse_address
from tests.support.fleets import fleet, fleet_data, shards_data

EXAMPLE = Path(__file__).parents[3] / "examples" / "fleet.yaml"


def problems_of(data: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_fleet(data)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_the_example_is_valid_and_has_no_gaps() -> None:
    config = load_fleet(EXAMPLE)
    assert [region.name for region in config.regions] == ["eu", "us"]
    assert find_gaps(config) == []


def test_json_gives_the_same_configuration() -> None:
    config = fleet(
        providers={"google": {"rate": "100/min", "idle_timeout": "1500ms"}, "mine": {"rate": "unlimited"}},
        retry={"transactional": {"schedule": ["1m", "90s"]}},
        sources=[
            {**fleet_data()["sources"][0], "tenancy": {"hybrid": "acme"}},
            {**fleet_data()["sources"][0], "name": "b", "ip": "2001:db8::1", "tenancy": "shared"},
        ],
        spool={"map_size": "3GiB"},
        routes=[{"domains": ["*"], "hosts": ["[::1]:2525"], "auth": {"username": "u", "password_file": "p"}}],
    )
    assert FleetConfig.model_validate_json(config.model_dump_json()) == config


def test_values_are_in_base_units() -> None:
    config = fleet(
        providers={"google": {"rate": "100/min"}},
        limits={"max_message_size": "1MiB"},
        resolver={"timeout": "1500ms"},
    )
    assert config.providers["google"].rate == Rate(100, 60.0)
    assert config.limits.max_message_size == 2**20
    assert config.resolver.timeout == 1.5
    assert config.retry.transactional.expire == 5 * 86400
    assert config.retry.marketing.expire == 2 * 86400


def test_netblock_follows_from_the_address() -> None:
    first = fleet_data()["sources"][0]
    config = fleet(
        sources=[
            {**first, "ip": "192.0.2.77"},
            {**first, "name": "six", "ip": "2001:DB8:1:2::3"},
            {**first, "name": "own", "ip": "192.0.2.78", "netblock": "198.51.100.0/28"},
        ]
    )
    assert [s.netblock for s in config.sources] == ["192.0.2.0/24", "2001:db8:1::/48", "198.51.100.0/28"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("shared", ("shared", "")),
        ({"dedicated": "acme"}, ("dedicated", "acme")),
        ({"hybrid": "acme"}, ("hybrid", "acme")),
    ],
)
def test_tenancy(written: object, expected: tuple[str, str]) -> None:
    source = {**fleet_data()["sources"][0], "tenancy": written}
    assert fleet(sources=[source]).sources[0].tenancy_of() == expected


def test_all_problems_at_once_schema_and_references() -> None:
    found = problems_of(
        {
            "regions": [{"name": "eu", "numbr": 1}, {"name": "eu", "number": 0}],
            "sources": [
                {"name": "a", "region": "us", "ip": "1.2.3", "ehlo": "host", "streams": ["bulk"]},
                {
                    "name": "a",
                    "region": "eu",
                    "ip": "192.0.2.1",
                    "ehlo": "a.example",
                    "streams": ["marketing"],
                },
            ],
            "resolver": {"timeout": 5},
            "routes": [{"domains": ["a..b"], "provider": "gogle", "hosts": ["h:99999"]}],
            "providers": {"google": {"max_conections": 3, "rate": "9"}},
            "retry": {"marketing": {"first": "5m", "max": "1m"}, "notification": {"expire": "1m"}},
            "tls": {"exceptions": [{"mode": "disabled", "reason": "because"}]},
            "color": "red",
        }
    )
    assert found["regions[0].number"] == "required"
    assert found["regions[0].numbr"] == "unknown key; did you mean 'number'?"
    assert "greater than or equal to 1" in found["regions[1].number"]
    assert "unique" in found["regions[1].name"]
    assert "unique" in found["sources[1].name"]
    assert found["sources[0].region"] == "allowed are the regions eu"
    assert "IPv4 or IPv6" in found["sources[0].ip"]
    assert "host name" in found["sources[0].ehlo"]
    assert found["sources[0].streams[0]"] == "allowed are 'transactional', 'notification' or 'marketing'"
    assert "a number with a unit" in found["resolver.timeout"]
    assert "allowed is a domain" in found["routes[0].domains[0]"]
    assert "google" in found["routes[0].provider"]
    assert "65535" in found["routes[0].hosts[0]"]
    assert found["providers.google.max_conections"] == "unknown key; did you mean 'max_connections'?"
    assert "a count per period" in found["providers.google.rate"]
    assert "at least first" in found["retry.marketing.max"]
    assert "more than the first wait" in found["retry.notification.expire"]
    assert "exactly one" in found["tls.exceptions[0]"]
    assert found["color"].startswith("unknown key; allowed are ")
    assert not any("default factory" in message or "at least 1 item" in message for message in found.values())


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"regions": [{"name": "eu", "number": 1}, {"name": "us", "number": 2}]}, "sources"),
        ({"sources": []}, "sources"),
        ({"routes": [{"domains": ["a.test"]}, {"domains": ["b.test", "A.test"]}]}, "routes[1].domains[1]"),
        ({"routes": [{"domains": ["a.test"], "hosts": ["h"], "tls": "disabled"}]}, "routes[0].tls"),
        (
            {"routes": [{"domains": ["a.test"], "auth": {"username": "u", "password_file": "p"}}]},
            "routes[0].auth",
        ),
        (
            {"tls": {"exceptions": [{"provider": "nope", "mode": "disabled", "reason": "xxx"}]}},
            "tls.exceptions[0].provider",
        ),
        ({"tls": {"exceptions": [{"provider": "google", "mode": "disabled"}]}}, "tls.exceptions[0].reason"),
        ({"providers": {"Big Co": {}}}, "providers.Big Co"),
        ({"limits": {"batch": 600, "pool_credits": 500}}, "limits.pool_credits"),
        ({"limits": {"ready_window": 0}}, "limits.ready_window"),
        ({"retry": {"transactional": {"factor": float("nan")}}}, "retry.transactional.factor"),
        ({"retry": {"transactional": {"first": "0s"}}}, "retry.transactional.first"),
        ({"retry": {"transactional": {"expire": "999999999d"}}}, "retry.transactional.expire"),
        ({"providers": {"google": {"rate": "1/999999999d"}}}, "providers.google.rate"),
        ({"resolver": {"min_ttl": "2d"}}, "resolver.min_ttl"),
        ({"resolver": {"dnssec": "trust"}}, "resolver.dnssec"),
        ({"tenants": {"acme": {"weight": 0}}}, "tenants.acme.weight"),
        ({"spool": None}, "spool"),
        ({"routes": {}}, "routes"),
    ],
)
def test_each_refusal_names_its_path(sections: dict[str, Any], path: str) -> None:
    assert list(problems_of(fleet_data(**sections))) == [path]


def test_a_plain_route_is_allowed_with_a_written_reason() -> None:
    reason = {"mode": "disabled", "reason": "smart host in the same rack"}
    route = {"domains": ["a.test"], "hosts": ["h"], "tls": "disabled"}
    assert fleet(routes=[route], tls={"exceptions": [{"domain": "a.test", **reason}]})
    assert fleet(routes=[route | {"provider": "qq"}], tls={"exceptions": [{"provider": "qq", **reason}]})


def test_a_provider_of_ones_own_can_be_used_by_a_route() -> None:
    assert fleet(providers={"mine": {}}, routes=[{"domains": ["*"], "provider": "mine"}])


def test_a_region_number_is_given_once() -> None:
    regions = [{"name": "eu", "number": 1}, {"name": "us", "number": 1}]
    assert "unique" in problems_of(fleet_data(regions=regions))["regions[1].number"]


def test_duplicate_addresses_are_refused() -> None:
    first = fleet_data()["sources"][0]
    assert "sources[1].ip" in problems_of(fleet_data(sources=[first, {**first, "name": "b"}]))


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:DB8:0:0:0:0:0:1"), ("192.0.2.1", "::ffff:192.0.2.1")],
)
def test_an_address_written_in_another_way_is_the_same(one: str, other: str) -> None:
    """Two sources on one address would have twice its limits."""
    first = fleet_data()["sources"][0]
    found = problems_of(fleet_data(sources=[{**first, "ip": one}, {**first, "name": "b", "ip": other}]))
    assert list(found) == ["sources[1].ip"]
    assert fleet(sources=[{**first, "ip": "::ffff:192.0.2.1"}]).sources[0].ip == "192.0.2.1"


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_a_source_is_one_host(ip: str) -> None:
    first = fleet_data()["sources"][0]
    assert "one host" in problems_of(fleet_data(sources=[{**first, "ip": ip}]))["sources[0].ip"]


def test_a_stream_is_named_once() -> None:
    first = fleet_data()["sources"][0]
    found = problems_of(fleet_data(sources=[{**first, "streams": ["marketing", "marketing"]}]))
    assert found == {"sources[0].streams": "each is allowed once: marketing"}


def test_a_route_of_an_international_domain_is_that_of_its_addresses() -> None:
    routes = [{"domains": ["straße.de", "*.Bücher.example."], "hosts": ["h"]}]
    assert fleet(routes=routes).routes[0].domains == ("xn--strae-oqa.de", "*.xn--bcher-kva.example")
    assert parse_address("a@straße.de").domain == "xn--strae-oqa.de"
    twice = [{"domains": ["bücher.example"]}, {"domains": ["xn--bcher-kva.example."]}]
    assert list(problems_of(fleet_data(routes=twice))) == ["routes[1].domains[0]"]


def test_more_sources_than_can_be_numbered() -> None:
    first = fleet_data()["sources"][0]
    sources = [
        {**first, "name": f"s{n}", "ip": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"} for n in range(65_001)
    ]
    assert list(problems_of(fleet_data(sources=sources))) == ["sources"]


def test_gaps_are_found(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "regions: [{name: eu, number: 1}]\n"
        "sources: [{name: a, region: eu, ip: 192.0.2.1, ehlo: a.example, streams: [marketing],"
        " tenancy: {dedicated: acme}}]\n"
    )
    gaps = "\n".join(map(str, find_gaps(load_fleet(file))))
    assert "no source for the stream transactional" in gaps
    assert "only dedicated sources for the stream marketing" in gaps


def test_copies_need_a_second_region() -> None:
    copies = {"replicas": 1}
    found = problems_of(fleet_data(fleet=copies))
    assert list(found) == ["fleet.replicas"]
    assert "allowed with one region is 0, or 1 with `degraded: accept_local`" in found["fleet.replicas"]
    alone = fleet(fleet={**copies, "degraded": "accept_local"})
    assert [gap.path for gap in find_gaps(alone)] == ["fleet.replicas"]
    assert parse_fleet(shards_data(fleet=copies)).fleet.replicas == 1
    shards = shards_data(fleet=copies)
    two = {**shards, "regions": shards["regions"][:2], "sources": shards["sources"][:2]}
    assert find_gaps(parse_fleet(two)) == []  # each shard holds the copies of the other


def test_a_name_that_no_region_can_ever_leave_is_a_gap() -> None:
    section = {
        "zone": "example.com",
        "name": "submit.example.com",
        "servers": ["192.0.2.53"],
        "key_file": "tsig.key",
        "addresses": {"eu-1": ["192.0.2.1"], "eu-2": ["192.0.2.2"], "us": ["192.0.2.3"]},
    }
    assert find_gaps(parse_fleet(shards_data(dns_failover=section))) == []
    gaps = find_gaps(parse_fleet(shards_data(dns_failover={**section, "min_regions": 3})))
    assert [(gap.path, gap.value) for gap in gaps] == [("dns_failover.min_regions", 3)]
    assert "no region ever leaves the records" in gaps[0].message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [", "line 1"),
        ("regions: []\nregions: []\n", "line 2, column 1"),
        ("- a\n", ""),
        ("!!python/x {}", "line 1"),
    ],
)
def test_a_file_that_is_not_the_right_yaml(tmp_path: Path, text: str, place: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_fleet(file)
    assert caught.value.problems[0].path.startswith(place)
    assert str(file) in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="there is no such file: name the fleet's with --fleet"):
        load_fleet("/nonexistent/fleet.yaml")


def test_the_error_can_be_pickled() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fleet({"regions": 3})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:2525", ("127.0.0.1", 2525)),
        ("mx.Example.com", ("mx.example.com", 25)),
        ("[::1]:26", ("::1", 26)),
        ("[::1]", ("::1", 25)),
        ("2001:db8::1", ("2001:db8::1", 25)),
    ],
)
def test_hosts(text: str, expected: tuple[str, int]) -> None:
    assert split_host(text) == expected


@pytest.mark.parametrize("text", ["", "a:", "a:0", "a b", "[::1", "[::1]25", "a:b:c", "-.x"])
def test_bad_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        split_host(text)


def test_a_region_may_have_several_nodes() -> None:
    config = parse_fleet(shards_data())
    assert FleetConfig.model_validate_json(config.model_dump_json()) == config
    assert [entry.region for entry in config.regions] == ["eu", "eu", "us"]
    assert config.members("eu") == ("eu-1", "eu-2")
    assert config.members("eu-2") == ("eu-2",)
    assert config.members("us") == ("us",)
    assert (config.siblings("eu-1"), config.siblings("us")) == (("eu-2",), ())
    near = [[entry.name for entry in config.near_first(name)] for name in ("eu-2", "us")]
    assert near == [["eu-2", "eu-1", "us"], ["us", "eu-1", "eu-2"]]
    with pytest.raises(ValueError, match="'mars': allowed are eu, eu-1, eu-2, us"):
        config.members("mars")


def test_where_a_shard_is_meant_its_region_is_refused() -> None:
    data = shards_data(
        metrics={"listen": {"eu": "127.0.0.1:9100"}},
        ingress={"http": {"eu": "127.0.0.1:9200"}},
        dns_failover={
            "zone": "example.com",
            "name": "submit.example.com",
            "addresses": {"eu": ["192.0.2.1"], "us": ["192.0.2.2"]},
            "servers": ["192.0.2.53"],
            "key_file": "key",
        },
    )
    data["sources"][0]["region"] = "eu"
    found = problems_of(data)
    expected = "is a region of several nodes; allowed is one of its shards: eu-1, eu-2"
    assert found["sources[0].region"] == expected
    assert found["metrics.listen.eu"] == expected
    assert found["ingress.http.eu"]
    with pytest.raises(ConfigError) as caught:
        parse_fleet(data)
    said = [p for p in caught.value.problems if p.path == "dns_failover.addresses"]
    assert {(p.value, p.message) for p in said} == {
        ("eu", expected),
        ("eu-1", "the region's addresses are missing"),
        ("eu-2", "the region's addresses are missing"),
    }


@pytest.mark.parametrize("region", ["us", "eu-1", "eu-2"])
def test_a_region_of_shards_has_a_name_that_no_node_has(region: str) -> None:
    data = shards_data()
    data["regions"][1]["shard_of"] = region
    assert "is the name of regions[" in problems_of(data)["regions[1].shard_of"]


def test_an_overloaded_region_hands_over_only_where_handing_over_is_on() -> None:
    refusal = problems_of(fleet_data(fleet={"hand_over_overloaded": "5m"}))["fleet.hand_over_overloaded"]
    assert refusal.startswith("takes effect only with `hand_over_after`")
    parse_fleet(fleet_data(fleet={"hand_over_overloaded": None}))
    parse_fleet(fleet_data(fleet={"hand_over_overloaded": "5m", "hand_over_after": "1h"}))


def test_a_shard_without_a_source_could_send_nothing() -> None:
    data = shards_data()
    data["sources"][1]["region"] = "eu-1"
    assert problems_of(data)["sources"] == "no source is in this region: it could send nothing"


def test_what_is_nested_too_deep_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("a: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(ConfigError, match="not YAML: nested too deep"):
        load_fleet(path)


def test_sizes_of_a_spool_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fleet(fleet_data(spool={"map_size": "1KiB", "segment_size": "1TiB"}))
    assert "spool.map_size: '1KiB': allowed is from 16MiB to 16TiB" in str(caught.value)
    assert "spool.segment_size: '1TiB': allowed is from 1MiB to 64GiB" in str(caught.value)


@pytest.mark.parametrize(("own", "warned"), [([], ["dns_failover.addresses"]), (["2001:db8:2::20"], [])])
def test_an_address_family_of_one_region_alone_is_warned_of(own: list[str], warned: list[str]) -> None:
    addresses = {
        "eu-1": ["198.51.100.10", "2001:db8:1::10"],
        "eu-2": ["198.51.100.20", *own],
        "us": ["203.0.113.10"],
    }
    section = {
        "zone": "example.com",
        "name": "submit.example.com",
        "servers": ["192.0.2.53"],
        "key_file": "tsig.key",
        "addresses": addresses,
    }
    gaps = find_gaps(parse_fleet(shards_data(dns_failover=section)))
    assert [gap.path for gap in gaps if "IPv6" in gap.message] == warned
