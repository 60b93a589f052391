"""What a blocklist's answer means."""

import pytest

from engine.config.blocklists import BlocklistsConfig, BlocklistZone
from engine.config.load import ConfigError
from engine.reputation.listing import Listed, Meaning, Reading, query_name, read_answer
from tests.support.fleets import fleet

ANY = BlocklistZone(zone="bl.example.net")
SOME = BlocklistZone(zone="bl.example.net", codes={"127.0.0.2": "SBL", "127.0.0.9": "DROP"})


@pytest.mark.parametrize(
    ("zone", "addresses", "meaning", "text"),
    [
        (ANY, (), Meaning.CLEAR, ""),
        (ANY, ("127.0.0.4",), Meaning.LISTED, "bl.example.net (127.0.0.4)"),
        (SOME, ("127.0.0.9", "127.0.0.2"), Meaning.LISTED, "bl.example.net (127.0.0.2 SBL, 127.0.0.9 DROP)"),
        (SOME, ("127.0.0.4",), Meaning.CLEAR, ""),
        (ANY, ("127.255.255.254",), Meaning.REFUSED, "it refuses to answer (127.255.255.254)"),
        (SOME, ("127.0.0.2", "127.255.255.252"), Meaning.REFUSED, "it refuses to answer (127.255.255.252)"),
        (ANY, ("203.0.113.7",), Meaning.REFUSED, "203.0.113.7 is no answer of a blocklist"),
    ],
)
def test_what_an_answer_means(
    zone: BlocklistZone, addresses: tuple[str, ...], meaning: Meaning, text: str
) -> None:
    assert read_answer(zone, addresses) == Reading(meaning, text)


def test_the_name_to_ask_for() -> None:
    assert query_name("192.0.2.99", "bl.example.net") == "99.2.0.192.bl.example.net"
    six = query_name("2001:db8::1", "bl.example.net")
    assert six.startswith("1.0.0.0.")
    assert six.endswith("8.b.d.0.1.0.0.2.bl.example.net")


def test_neither_refusal_nor_silence_changes_what_is_known() -> None:
    listed = Listed()
    assert listed.note("a", Reading(Meaning.LISTED, "a (127.0.0.2)"))
    assert not listed.note("a", Reading(Meaning.LISTED, "a (127.0.0.2)"))
    assert not listed.note("a", Reading(Meaning.REFUSED, "x"))
    assert not listed.note("a", Reading(Meaning.SILENT, "x"))
    assert listed.note("b", Reading(Meaning.LISTED, "b (127.0.0.3)"))
    assert listed.text == "a (127.0.0.2); b (127.0.0.3)"
    assert listed.note("a", Reading(Meaning.CLEAR))
    assert not listed.note("a", Reading(Meaning.CLEAR))
    assert listed.text == "b (127.0.0.3)"
    listed.keep(["a"])
    assert listed.text == ""


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"zones": [{"zone": "a.example", "codes": {"127.255.255.254": "x"}}]},
            "not those of 127.255.255.0/24",
        ),
        (
            {"zones": [{"zone": "a.example", "codes": {"10.0.0.1": "x"}}]},
            "allowed are addresses of 127.0.0.0/8",
        ),
        ({"zones": [{"zone": "a.example"}, {"zone": "a.example"}]}, "a.example is given twice"),
        ({"interval": "5s"}, "allowed is at least 1m"),
    ],
)
def test_a_wrong_section_is_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fleet(blocklists=section)


def test_none_is_asked_by_default() -> None:
    assert BlocklistsConfig().zones == ()
