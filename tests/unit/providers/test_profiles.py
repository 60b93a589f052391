import re
from pathlib import Path

import pytest

from engine.config.units import Rate
from engine.providers import profiles
from engine.providers.profiles import ProfileError, load_profiles, profile_names, read_profile
from tests.support.fleets import fleet

FOLDER = Path(profiles.__file__).parent
EXPECTED = {
    "google",
    "outlook",
    "office365",
    "yahoo",
    "apple",
    "comcast",
    "gmx",
    "orange",
    "qq",
    "163",
    "default",
}


def test_the_profiles_that_are_promised() -> None:
    assert profile_names() == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_setting_has_a_source_with_a_date(name: str) -> None:
    profile, _ = read_profile((FOLDER / f"{name}.yaml").read_text(), name)
    for key, setting in profile.settings.items():
        assert re.search(r"\b(19|20)\d\d-\d\d|undated|no date applies", setting.source), key


def test_published_numbers() -> None:
    found = load_profiles({})
    assert (found["yahoo"].messages_per_connection, found["yahoo"].max_connections) == (20, 10)
    assert (found["google"].max_connections, found["google"].messages_per_connection) == (5, 50)
    assert found["outlook"].max_connections_total == 500
    assert found["163"].messages_per_connection == 7
    assert found["default"].rate == Rate(100, 1.0)
    assert found["default"].mx_suffixes == ()


def test_overrides_change_one_setting_and_leave_the_rest() -> None:
    config = fleet(
        providers={
            "google": {"max_connections": 2, "rate": "unlimited"},
            "own": {"mx_suffixes": ["own.example"]},
        }
    )
    found = load_profiles(config.providers)
    assert found["google"].max_connections == 2
    assert found["google"].rate is None
    assert found["google"].messages_per_connection == 50
    assert found["google"].origins["max_connections"] == "fleet.yaml: providers.google.max_connections"
    assert found["own"].mx_suffixes == ("own.example",)
    assert found["own"].messages_per_connection == 100


def test_an_override_of_default_holds_where_a_profile_says_nothing_but_never_its_hosts() -> None:
    config = fleet(
        providers={"default": {"max_recipients": 3, "max_connections": 99, "mx_suffixes": ["x.example"]}}
    )
    found = load_profiles(config.providers)
    assert found["google"].max_recipients == 3
    assert found["google"].max_connections == 5
    assert found["office365"].mx_suffixes == ("mail.protection.outlook.com", "mx.microsoft")
    assert (
        load_profiles({"mine": config.providers["default"].model_copy(update={"mx_suffixes": None})})[
            "mine"
        ].mx_suffixes
        == ()
    )


def test_hosts_and_domains_of_default_are_not_inherited() -> None:
    config = fleet(
        providers={"default": {"mx_suffixes": ["x.example"], "domains": ["x.example"]}, "mine": {}}
    )
    found = load_profiles(config.providers)
    assert (found["mine"].mx_suffixes, found["mine"].domains) == ((), ())
    assert found["office365"].domains == ()
    assert found["default"].mx_suffixes == ("x.example",)


RULE = """
name: x
settings:
  automation:
    value: [{name: r, action: suspend, pattern: 'TSS04', scope: source, duration: 2h, sample: "421 [TSS05] deferred"}]
    source: "somewhere, 2026-01-01"
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULE, "does not match its own sample"),
        (RULE.replace("'TSS04'", "'('"), "not a regular expression"),
        ("name: x\nsettings: {max_connections: {value: 3}}", "source"),
        ("name: x\nsettings: {max_connections: {value: 0, source: 'somewhere, 2026'}}", "greater than"),
        ("name: x\nsettings: {max_conn: {value: 3, source: 'somewhere, 2026'}}", "max_conn"),
        ("name: x\nname: y\nsettings: {}", "given twice"),
    ],
)
def test_a_wrong_profile_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        read_profile(text, "x.yaml")
