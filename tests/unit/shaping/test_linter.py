"""Every shipped rule is proven; the linter finds what can never match, is shadowed, or would bounce a recipient."""

import pytest

from engine.config.shaping import AutomationRule
from engine.providers.profiles import load_profiles, profile_names
from engine.shaping.linter import lint, parse_sample
from engine.shaping.rules import RuleSet
from engine.values.reply import Reply


def rule(name: str, pattern: str, sample: str, **fields: object) -> AutomationRule:
    base = {"scope": "source", "action": "suspend", "duration": "10m"}
    return AutomationRule.model_validate(
        {"name": name, "pattern": pattern, "sample": sample, **base, **fields}
    )


@pytest.mark.parametrize("name", sorted(profile_names()))
def test_the_shipped_rules_have_no_findings(name: str) -> None:
    assert lint(load_profiles({})[name].automation) == []


@pytest.mark.parametrize(
    ("provider", "reply", "name", "action"),
    [
        ("google", "421 4.7.28 ... originating from your IP address", "google-rate", "recover"),
        ("google", "421 4.7.28 originating from your IP Netblock", "google-netblock-rate", "suspend"),
        ("google", "421 4.7.28 rate of email from your SPF domain", "google-domain-rate", "alert"),
        ("yahoo", "421 4.7.0 [TSS04] Messages from 192.0.2.1", "yahoo-deferred", "suspend"),
        ("outlook", "451 4.7.650 The mail server [x] has been (S775)", "outlook-rate", "slow"),
        ("outlook", "451 4.7.651 The mail server [x] has been (S3114)", "outlook-rate", "slow"),
        ("outlook", "451 4.7.652 The mail server [x] has exceeded (S3115)", "outlook-connections", "slow"),
        (
            "outlook",
            "550 5.7.1 part of their network is on our block list (S3150).",
            "outlook-block-list",
            "remove",
        ),
        ("outlook", "550 5.5.0 mailbox unavailable (S2017062302).", None, None),
    ],
)
def test_published_replies_meet_their_rule(
    provider: str, reply: str, name: str | None, action: str | None
) -> None:
    profile = load_profiles({})[provider]
    found = RuleSet.build(profile.automation, profile.max_connections).match(reply)
    assert (found and found.name, found and found.action) == (name, action)


def test_yahoo_is_left_alone_for_two_hours_and_google_for_ten_minutes() -> None:
    profiles = load_profiles({})
    durations = {r.name: r.duration for p in profiles.values() for r in p.automation}
    assert durations["yahoo-deferred"] == 7200
    assert durations["google-rate"] == 600


def test_a_shadowed_rule_is_found() -> None:
    rules = [rule("wide", "4\\.7", "421 4.7.0 slow down"), rule("narrow", "TSS04", "421 4.7.0 [TSS04] x")]
    assert [str(f) for f in lint(rules)] == [
        "narrow: shadowed: its sample is counted by the earlier rule wide"
    ]
    assert lint(rules[::-1]) == []


def test_a_sample_that_is_no_reply_is_found() -> None:
    (finding,) = lint([rule("a", "TSS04", "[TSS04] no code")])
    assert "the sample is no reply" in finding.message
    assert lint([rule("a", "ok", "250 2.0.0 ok")])


def test_a_pattern_that_needs_what_the_engine_never_sees_is_found() -> None:
    (finding,) = lint([rule("a", "^421  4", "421  4.7.0 two spaces")])
    assert "no reply" in finding.message or "never match" in finding.message


def test_a_reply_about_the_source_that_would_bounce_its_recipient_is_found() -> None:
    (finding,) = lint([rule("a", "go away", "550 5.1.1 go away")])
    assert "takes the sample for a bounce" in finding.message


@pytest.mark.parametrize(
    ("scope", "sample"),
    [
        ("domain", "421 4.7.28 an unusual rate of email originating from your IP address"),
        ("domain", "421 4.7.28 unsolicited email originating from your IP Netblock."),
        ("source", "421 4.7.28 an unusual rate of email originating from your DKIM domain"),
        ("netblock", "421 4.7.0 very low reputation of the sending domain"),
    ],
)
def test_a_scope_that_contradicts_what_the_reply_says_is_found(scope: str, sample: str) -> None:
    action = "alert" if scope == "domain" else "suspend"
    (finding,) = lint([rule("a", sample, sample, scope=scope, action=action)])
    assert f"the rule for one of the {scope}" in finding.message


def test_a_name_given_twice_is_found() -> None:
    findings = lint([rule("a", "x1", "421 4.7.0 x1"), rule("a", "x2", "421 4.7.0 x2")])
    assert [f.message for f in findings] == ["the name is given twice"]


def test_a_sample_is_read_as_the_engine_sees_it() -> None:
    assert parse_sample("421 4.7.28 slow down") == Reply(421, "4.7.28", "slow down")
    assert parse_sample("421 RP-001 x") == Reply(421, "", "RP-001 x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "["}, "not a regular expression"),
        ({"pattern": "y"}, "does not match its own sample"),
        ({"scope": "domain"}, "allowed with the scope domain is alert"),
        ({"threshold": "2000/1h"}, "allowed is a count up to 1000"),
    ],
)
def test_a_wrong_rule_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule("a", **({"pattern": "x", "sample": "421 x"} | fields))  # type: ignore[arg-type]
