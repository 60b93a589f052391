import pytest

from engine.config.explain import BUILT_IN, Setting, explain
from engine.providers.profiles import load_profiles
from engine.routing.route import HostTarget, Route
from tests.support.fleets import fleet


def rows(
    recipient: str, *, resolved: Route | None = None, source: str | None = None, **sections: object
) -> dict[str, Setting]:
    config = fleet(**sections)
    found = explain(
        config, load_profiles(config.providers), recipient, "marketing", source, resolved=resolved
    )
    return {row.name: row for row in found}


def test_built_in_profile_and_override_have_their_origins() -> None:
    found = rows("a@gmail.com", providers={"google": {"rate": "10/min"}, "default": {"max_recipients": 7}})
    assert found["provider"].value == "google"
    assert found["rate"][1:] == ("10/min", "fleet.yaml: providers.google.rate")
    assert found["max_recipients"][1:] == ("7", "fleet.yaml: providers.default.max_recipients")
    assert found["max_connections"].value == "5"
    assert found["max_connections"].origin.startswith("engine/providers/google.yaml (")
    assert found["daily_cap"][1:] == ("none", BUILT_IN)
    assert found["tls"][1:] == ("required", BUILT_IN)


def test_static_route_and_exception() -> None:
    found = rows(
        "a@x.test",
        routes=[{"domains": ["*.test", "x.test"], "provider": "yahoo", "hosts": ["127.0.0.1:2525"]}],
        tls={"exceptions": [{"provider": "yahoo", "mode": "disabled", "reason": "sink"}]},
    )
    assert found["route"][1:] == ("127.0.0.1:2525", "fleet.yaml: routes[0].hosts")
    assert found["provider"][1:] == ("yahoo", "fleet.yaml: routes[0].provider")
    assert found["tls"][1:] == ("disabled", "fleet.yaml: tls.exceptions[0] (sink)")


def test_a_resolved_route_decides_the_provider() -> None:
    route = Route("google", "google", (HostTarget("aspmx.l.google.com", 25, 1),), "required")
    found = rows("a@example.org", resolved=route)
    assert found["provider"][1:] == ("google", "MX rollup of aspmx.l.google.com")
    assert rows("a@example.org")["provider"].value == "default"


def test_retry_and_source() -> None:
    found = rows("a@b.example", source="127.0.0.11", retry={"marketing": {"first": "7m"}})
    assert found["retry.first"][1:] == ("7m", "fleet.yaml: retry.marketing.first")
    assert found["retry.expire"][1:] == ("2d", BUILT_IN)
    assert found["source"].value == "eu-1"
    assert found["source.carries the stream"].value == "yes"


def test_unknown_source_and_stream_are_named() -> None:
    with pytest.raises(ValueError, match="eu-1"):
        rows("a@b.example", source="nope")
    config = fleet()
    with pytest.raises(ValueError, match="transactional"):
        explain(config, load_profiles({}), "a@b.example", "bulk")


def test_signing_domains() -> None:
    config = fleet(
        dkim={
            "domains": [
                {"domain": "example.com", "keys": [{"selector": "r1", "file": "k"}], "tenants": ["acme"]},
                {"domain": "esp.example", "keys": [{"selector": "e1", "file": "k"}], "sign_all": True},
            ]
        }
    )

    def signing(**options: str) -> list[tuple[str, ...]]:
        found = explain(config, load_profiles(config.providers), "a@x.test", "marketing", **options)  # type: ignore[arg-type]
        return [row[1:] for row in found if row.name == "dkim"]

    own = (
        "d=example.com; selectors r1; From example.com, *.example.com; tenants acme",
        "fleet.yaml: dkim.domains[0]",
    )
    esp = ("d=esp.example; selectors e1; From all mail", "fleet.yaml: dkim.domains[1]")
    assert signing() == [own, esp]
    assert signing(header_from="a@news.example.com", tenant="acme") == [own, esp]
    assert signing(header_from="a@example.org") == [esp]
    wide = "\N{FULLWIDTH LATIN SMALL LETTER E}xample.com"  # a domain is looked up in the form in which it is signed for
    assert signing(header_from=f"Ann <a@news.{wide}>", tenant="acme") == [own, esp]
    [(value, origin)] = signing(header_from="a@example.com", tenant="other")
    assert value == "bounced: allowed for the tenants acme"
    assert origin == "fleet.yaml: dkim.domains[0].tenants"
    assert rows("a@x.test")["dkim"].value == "no signing domain: mail goes unsigned"
