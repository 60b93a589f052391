import pytest

from engine.providers.profiles import load_profiles
from engine.routing.table import PatternTable, ProviderTable, rollup


def test_the_most_specific_pattern_wins() -> None:
    table = PatternTable([("*", 0), ("*.test", 1), ("*.a.test", 2), ("a.test", 3), ("b.a.test", 4)])
    expected = {"x.y": 0, "test": 0, "b.test": 1, "a.test": 3, "x.a.test": 2, "z.x.a.test": 2, "b.a.test": 4}
    assert {domain: table.get(domain) for domain in expected} == expected


def test_no_pattern_no_value() -> None:
    assert PatternTable([("a.test", 1)]).get("b.a.test") is None
    assert PatternTable([("*.a.test", 1)]).get("a.test") is None


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("gmail-smtp-in.l.google.com", "google"),
        ("aspmx2.googlemail.com", "google"),
        ("smtp.google.com", "google"),
        ("outlook-com.olc.protection.outlook.com", "outlook"),
        ("example-com.mail.protection.outlook.com", "office365"),
        ("example-com.a-v1.mx.microsoft", "office365"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx01.mail.icloud.com", "apple"),
        ("mx1.comcast.net", "comcast"),
        ("mx00.gmx.net", "gmx"),
        ("mx-ha02.web.de", "gmx"),
        ("smtp-in.orange.fr", "orange"),
        ("mx3.qq.com", "qq"),
        ("163mx01.mxmail.netease.com", "163"),
        ("mx.notgoogle.com", None),
        ("google.com.example.net", None),
        ("outlook.com", None),
    ],
)
def test_provider_by_mx_host(host: str, provider: str | None) -> None:
    assert ProviderTable(load_profiles({})).get(host) == provider


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mx1.mail.example.net", "example.net"),
        ("example.net", "example.net"),
        ("mx.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("localhost", "localhost"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_rollup(host: str, name: str) -> None:
    assert rollup(host) == name
