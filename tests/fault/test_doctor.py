"""`sendfleet doctor` against a real authoritative server (knot) behind a real resolver (unbound)."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from engine.cli.main import build_cli
from engine.config.signing import DkimConfig
from engine.dkim.keys import read_key
from engine.doctor.case import Case, Sender
from engine.doctor.examine import examine, summary
from engine.doctor.finding import Finding, Level, txt_record
from engine.doctor.questions import Questions
from engine.routing.resolver import build_resolver
from tests.support.fleets import fleet, fleet_data
from tests.support.nameservers import knot, needs_unbound, unbound

pytestmark = needs_unbound

HEAD = "$TTL 600\n@ SOA ns admin 1 3600 600 86400 120\n@ NS ns\nns A 127.0.0.1\n"
GOOD = (
    HEAD
    + """\
@             MX   10 mx1
@             MX   20 mx2
mx1           A    198.51.100.1
mx2           AAAA 2001:db8::2
@             TXT  "v=spf1 include:spf -all"
@             TXT  "unrelated=1"
spf           TXT  "v=spf1 ip4:198.51.100.8/29 ip6:2001:db8:1::/48 -all"
mta1          A    198.51.100.11
mta2          A    198.51.100.12
_dmarc        TXT  "v=DMARC1; p=reject; rua=mailto:dmarc@good.test,mailto:d@reports.test"
_mta-sts      TXT  "v=STSv1; id=20260101"
_smtp._tls    TXT  "v=TLSRPTv1; rua=mailto:tls@good.test"
default._bimi TXT  "v=BIMI1; l=https://good.test/logo.svg; a=https://good.test/mark.pem"
bounce        MX   10 mx1
bounce        TXT  "v=spf1 a:mta1.good.test -all"
"""
).replace("include:spf ", "include:spf.good.test ")
BAD = (
    HEAD
    + """\
@             MX   5 198.51.100.1.
@             MX   10 nowhere
@             MX   20 alias
alias         CNAME ns
@             TXT  "v=spf1 a:liar.bad.test ptr ip4:198.51.100.99 ?all"
ten           TXT  "v=spf1 a a a a a a a a a a a ip4:198.51.100.8/29 -all"
ten           A    192.0.2.1
ten           MX   0 .
two           TXT  "v=spf1 -all"
two           TXT  "v=spf1 +all"
_dmarc.two    TXT  "v=DMARC1; p=none"
_dmarc.two    TXT  "v=DMARC1; p=reject"
behind        TXT  "v=spf1 ip4:198.51.100.8/29 -all a"
syntax        TXT  "v=spf1 ipv4:198.51.100.8/29 -all"
_dmarc        TXT  "v=DMARC1; p=sometimes; rua=mailto:x@elsewhere.test"
_mta-sts      TXT  "v=STSv1; id=with-dash"
_smtp._tls    TXT  "v=TLSRPTv1; rua=ftp://x"
default._bimi TXT  "v=BIMI1; l=http://bad.test/logo.svg"
liar          A    192.0.2.77
ip-198-51-100-15 A 198.51.100.15
s1._domainkey TXT  "v=DKIM1; p="
s2._domainkey TXT  "v=DKIM1; p=AAAA"
s2._domainkey TXT  "v=DKIM1; p=BBBB"
"""
)
REVERSE = (
    HEAD
    + "11 PTR mta1.good.test.\n12 PTR other.good.test.\n12 PTR mta2.good.test.\n"
    + "13 PTR liar.bad.test.\n15 PTR ip-198-51-100-15.bad.test.\n16 PTR mta1.good.test.\n"
)
LIST = HEAD + (
    '2.0.0.127 A 127.0.0.2\n13.100.51.198 A 127.0.0.4\n13.100.51.198 TXT "compromised [host]"\n'
    "test A 127.0.1.2\nbad.test A 127.0.1.4\n"
)
# a list that answers everybody with a refusal, as some do to public resolvers
REFUSING = HEAD + "* A 127.255.255.254\n"
ZONES = {
    "good.test": GOOD,
    "bad.test": BAD,
    "100.51.198.in-addr.arpa": REVERSE,
    "list.test": LIST,
    "refusing.test": REFUSING,
    "everything.test": HEAD + "* A 127.0.0.2\n",
    "reports.test": HEAD + 'good.test._report._dmarc TXT "v=DMARC1"\n',
    "elsewhere.test": HEAD,
    "test": HEAD,
    "signed.test": HEAD,
    "broken.test": HEAD,
    "blindly.test": HEAD + '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:d@broken.test"\n',
}
KINDS = dict.fromkeys(ZONES, "insecure") | {"signed.test": "signed", "broken.test": "bogus"}


LINKS: dict[str, Any] = {
    "tokens": {"keys": [{"id": 1, "file": "token.key"}]},
    "ingress": {"http": {"eu": "127.0.0.1:8080"}},
    "unsubscribe": {"links": [{"url": "https://good.test/u"}]},
}


def write_key(path: Path, private: Any) -> Path:
    path.touch(0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return {
        "rsa": write_key(folder / "rsa.pem", generate_private_key(public_exponent=65537, key_size=2048)),
        "ed": write_key(folder / "ed.pem", Ed25519PrivateKey.generate()),
        "other": write_key(folder / "other.pem", Ed25519PrivateKey.generate()),
    }


@pytest.fixture(scope="module")
def nameserver(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Path]) -> Iterator[int]:
    records = [
        txt_record(
            f"{selector}._domainkey.good.test", read_key("good.test", selector, keys[selector]).record()
        )
        for selector in ("rsa", "ed")
    ]
    zones = ZONES | {"good.test": GOOD + "\n".join(records) + "\n"}
    with (
        knot(tmp_path_factory.mktemp("knot"), zones, signed=("signed.test", "broken.test")) as authority,
        unbound(tmp_path_factory.mktemp("unbound"), authority, KINDS) as port,
    ):
        yield port


def sender(last: int, ehlo: str) -> Sender:
    return Sender(f"eu-{last}", f"198.51.100.{last}", ehlo)


def case_of(port: int, domain: str, **changes: Any) -> Case:
    resolver = {"nameservers": ["127.0.0.1"], "port": port, "private_addresses": "allow"}
    config = fleet(resolver=resolver, doctor=changes.pop("doctor", {}), **LINKS)
    questions = Questions(build_resolver(config.resolver))
    return replace(Case(domain, domain, config, questions), **changes)


def look(case: Case) -> list[Finding]:
    return asyncio.run(examine(case))


def rows(findings: list[Finding], check: str) -> list[tuple[str, Level]]:
    return [(finding.subject, finding.level) for finding in findings if finding.check == check]


def why(findings: list[Finding], check: str) -> str:
    return " | ".join(finding.why for finding in findings if finding.check == check)


def dkim(keys: dict[str, Path], **files: str) -> DkimConfig:
    entries = [{"selector": selector, "file": keys[name]} for selector, name in files.items()]
    return DkimConfig.model_validate({"domains": [{"domain": "good.test", "keys": entries}]})


def test_a_good_domain(nameserver: int, keys: dict[str, Path]) -> None:
    case = case_of(
        nameserver,
        "good.test",
        senders=(sender(11, "mta1.good.test"), sender(12, "mta2.good.test")),
        dkim=dkim(keys, rsa="rsa", ed="ed"),
        doctor={"blocklists": ["list.test"], "domain_blocklists": ["list.test"]},
    )
    findings = look(case)
    assert {f for f in findings if f.level in (Level.WARN, Level.FAIL)} == set()
    assert rows(findings, "spf") == [
        ("eu-11 198.51.100.11", Level.PASS),
        ("eu-12 198.51.100.12", Level.PASS),
    ]
    assert "(1 of 10 look-ups, 0 of 2 void)" in why(findings, "spf")
    assert [level for _, level in rows(findings, "dkim")] == [Level.PASS, Level.PASS]
    assert "RSA of 2048 bits" in why(findings, "dkim")
    assert why(findings, "alignment") == "SPF by the return path good.test; DKIM by d=good.test"
    assert rows(findings, "mx") == [("good.test", Level.PASS)]
    assert [level for _, level in rows(findings, "ptr") + rows(findings, "helo")] == [Level.PASS] * 4
    assert [level for _, level in rows(findings, "blocklist")] == [Level.PASS] * 3
    assert set(map(tuple, summary(findings).values())) == {()}
    assert set(summary(findings)) == {"google", "yahoo", "outlook"}


def test_a_bad_domain(nameserver: int) -> None:
    senders = (
        sender(13, "nowhere.bad.test"),
        sender(14, "liar.bad.test"),
        sender(15, "ip-198-51-100-15.bad.test"),
        sender(16, "mta2.good.test"),
    )
    lists = {"blocklists": ["list.test", "refusing.test"], "domain_blocklists": ["list.test"]}
    findings = look(case_of(nameserver, "bad.test", senders=senders, selectors=("s1", "s2"), doctor=lists))

    assert rows(findings, "ptr") == [
        ("eu-13 198.51.100.13", Level.FAIL),
        ("eu-14 198.51.100.14", Level.FAIL),
        ("eu-15 198.51.100.15", Level.WARN),
        ("eu-16 198.51.100.16", Level.FAIL),
    ]
    assert "liar.bad.test does not resolve back" in why(findings, "ptr")
    no_ptr = next(f for f in findings if f.subject == "eu-14 198.51.100.14" and f.check == "ptr")
    assert no_ptr.publish == (
        "14.100.51.198.in-addr.arpa. 3600 IN PTR liar.bad.test.",
        "liar.bad.test. 3600 IN A 198.51.100.14",
    )
    assert {demand.provider for demand in no_ptr.demands} == {"google", "yahoo", "outlook"}
    assert [level for _, level in rows(findings, "helo")] == [
        Level.FAIL,
        Level.WARN,
        Level.PASS,
        Level.WARN,
    ]
    assert rows(findings, "dkim") == [
        ("s1._domainkey.bad.test", Level.FAIL),
        ("s2._domainkey.bad.test", Level.FAIL),
    ]
    assert "p=sometimes" in why(findings, "dmarc")
    assert ("bad.test._report._dmarc.elsewhere.test", Level.WARN) in rows(findings, "dmarc")
    for check, words in (
        ("mta-sts", "id=with-dash"),
        ("tls-rpt", "rua=ftp://x"),
        ("bimi", "l=http://bad.test/logo.svg"),
        ("mx", "198.51.100.1 is an address"),
        ("mx", "nowhere.bad.test has no address"),
        ("mx", "alias.bad.test is an alias"),
        ("spf", "`ptr` is slow"),
        ("spf", "`?all` says nothing against forgers"),
        ("blocklist", "on list.test (127.0.0.4): compromised [host]"),
        ("blocklist", "on list.test (127.0.1.4)"),
        ("blocklist", "does not work from here"),
    ):
        assert words in why(findings, check)
    assert summary(findings) == {name: ["spf", "dkim", "ptr"] for name in ("google", "yahoo", "outlook")}


def test_the_proposed_spf_record_permits_every_source(nameserver: int) -> None:
    findings = look(
        case_of(nameserver, "bad.test", senders=(sender(13, "a.bad.test"), sender(14, "b.bad.test")))
    )
    published = {line for finding in findings if finding.check == "spf" for line in finding.publish}
    assert published == {
        'bad.test. 3600 IN TXT "v=spf1 ip4:198.51.100.13 ip4:198.51.100.14 a:liar.bad.test ptr ip4:198.51.100.99 ?all"'
    }


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ("ten.bad.test", "permerror: more than 10 terms that ask the DNS"),
        ("two.bad.test", "2 SPF records: permerror everywhere"),
        ("syntax.bad.test", "ipv4:198.51.100.8/29"),
        ("nothing.bad.test", "no SPF record"),
    ],
)
def test_spf_that_no_receiver_can_use(nameserver: int, domain: str, words: str) -> None:
    findings = look(case_of(nameserver, domain, senders=(sender(13, "liar.bad.test"),)))
    assert words in why(findings, "spf")
    assert Level.FAIL in [level for _, level in rows(findings, "spf")]


def test_spf_terms_that_are_never_read(nameserver: int) -> None:
    findings = look(case_of(nameserver, "behind.bad.test", senders=(sender(13, "liar.bad.test"),)))
    assert "what stands behind `-all` is never read" in why(findings, "spf")
    assert "never read" not in why(look(case_of(nameserver, "good.test")), "spf")


def test_two_dmarc_records_and_a_null_mx(nameserver: int) -> None:
    assert "2 DMARC records: none of them counts" in why(look(case_of(nameserver, "two.bad.test")), "dmarc")
    assert "null MX" in why(look(case_of(nameserver, "ten.bad.test")), "mx")


def test_dkim_keys_that_do_not_match(nameserver: int, keys: dict[str, Path], tmp_path: Path) -> None:
    config = dkim(keys, ed="other", missing="rsa")
    findings = look(case_of(nameserver, "good.test", dkim=config))
    assert [level for _, level in rows(findings, "dkim")] == [Level.FAIL, Level.FAIL]
    assert "signatures fail" in why(findings, "dkim")
    published = [line for finding in findings if finding.check == "dkim" for line in finding.publish]
    assert published[0].startswith('ed._domainkey.good.test. 3600 IN TXT "v=DKIM1; k=ed25519; p=')
    assert published[1].startswith('missing._domainkey.good.test. 3600 IN TXT "v=DKIM1; k=rsa; p=')
    gone = dkim({"gone": tmp_path / "gone.pem"}, rsa="gone")
    assert "mail cannot be signed" in why(look(case_of(nameserver, "good.test", dkim=gone)), "dkim")


def test_a_list_that_lists_everything_says_nothing(nameserver: int) -> None:
    lists = {"blocklists": ["everything.test"], "domain_blocklists": ["everything.test"]}
    case = case_of(nameserver, "good.test", doctor=lists, senders=(sender(11, "mta1.good.test"),))
    assert rows(look(case), "blocklist") == [("everything.test", Level.NOTE)] * 2


def test_two_key_records_of_one_selector(nameserver: int) -> None:
    findings = look(case_of(nameserver, "bad.test", selectors=("s2",)))
    assert "2 TXT records: which one counts is undefined" in why(findings, "dkim")


def test_dkim_that_few_receivers_verify(nameserver: int, keys: dict[str, Path]) -> None:
    only = look(case_of(nameserver, "good.test", dkim=dkim(keys, ed="ed")))
    assert rows(only, "dkim") == [
        ("ed._domainkey.good.test", Level.PASS),
        ("good.test", Level.WARN),
    ]
    both = look(case_of(nameserver, "good.test", dkim=dkim(keys, ed="ed", rsa="rsa")))
    assert {level for _, level in rows(both, "dkim")} == {Level.PASS}


def test_alignment_of_the_return_path_and_of_d(nameserver: int, keys: dict[str, Path]) -> None:
    below = case_of(nameserver, "good.test", return_path="bounce.good.test", dkim=dkim(keys, rsa="rsa"))
    assert why(look(below), "alignment").startswith("SPF by the return path bounce.good.test; DKIM")
    stranger = replace(below, return_path="bad.test")
    assert rows(look(stranger), "alignment") == [("From good.test", Level.NOTE)]
    findings = look(replace(stranger, dkim=None))
    assert rows(findings, "alignment") == [("From good.test", Level.FAIL)]
    assert "alignment" in summary(findings)["outlook"]
    assert rows(look(replace(below, dkim=None)), "alignment") == [("From good.test", Level.WARN)]


def test_a_dns_that_fails_is_a_failure_and_never_a_missing_record(nameserver: int) -> None:
    findings = look(
        case_of(nameserver, "broken.test", selectors=("s1",), senders=(sender(11, "mta1.good.test"),))
    )
    for check in ("spf", "dkim", "dmarc", "mx", "mta-sts", "tls-rpt", "bimi"):
        assert "the DNS does not answer" in why(findings, check), check
        assert "no " not in why(findings, check).replace("the DNS does not answer", "")
    assert {line for finding in findings for line in finding.publish} == set()


@pytest.fixture
def fleet_yaml(nameserver: int, keys: dict[str, Path], tmp_path: Path) -> Path:
    source = {
        "name": "eu-11",
        "region": "eu",
        "ip": "198.51.100.11",
        "ehlo": "mta1.good.test",
        "streams": ["transactional", "notification", "marketing"],
    }
    resolver = {"nameservers": ["127.0.0.1"], "port": nameserver, "private_addresses": "allow"}
    entries = [{"selector": selector, "file": str(keys[selector])} for selector in ("rsa", "ed")]
    signing = {"domains": [{"domain": "good.test", "keys": entries}]}
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(fleet_data(sources=[source], resolver=resolver, dkim=signing)))
    return path


def run(*arguments: str | Path) -> Any:
    def no_fleet(path: Path) -> Any:
        raise AssertionError("doctor needs no running fleet")

    return CliRunner().invoke(build_cli(no_fleet), ["doctor", *map(str, arguments)])


def test_the_command_shows_a_table_and_its_exit_status_is_that_of_the_worst(fleet_yaml: Path) -> None:
    good = run("GOOD.test.", "--fleet", fleet_yaml)
    assert good.exit_code == 0, good.output
    assert "published rules of google: met, as far as seen" in good.stdout
    bad = run("bad.test", "--fleet", fleet_yaml)
    assert bad.exit_code == 1
    assert "published rules of yahoo: not met: spf, dkim" in bad.stdout
    assert (
        '  bad.test. 3600 IN TXT "v=spf1 ip4:198.51.100.11 a:liar.bad.test ptr ip4:198.51.100.99 ?all"'
        in bad.stdout
    )
    assert bad.stderr.startswith("error: bad.test: ")
    for wrong in (
        ("a..b",),
        ("user@good.test",),
        ("good.test", "--return-path", "-"),
        ("good.test", "--address", "x=1.2.3.4"),
        ("good.test", "--selector", "a b"),
        ("good.test", "--selector", ""),
    ):
        assert run(*wrong, "--fleet", fleet_yaml).exit_code == 2, wrong


def test_what_the_dns_does_not_say_is_not_called_met(fleet_yaml: Path) -> None:
    data = yaml.safe_load(fleet_yaml.read_text())
    data["dkim"]["domains"][0]["domain"] = "broken.test"
    fleet_yaml.write_text(yaml.safe_dump(data))
    blind = run("broken.test", "--fleet", fleet_yaml)
    assert blind.exit_code == 1
    assert "met, as far as seen" not in blind.stdout
    assert "published rules of google: not known, the DNS does not answer: spf, dkim, dmarc" in blind.stdout


def test_a_report_address_whose_dns_fails_hides_nothing_else(nameserver: int) -> None:
    findings = look(case_of(nameserver, "blindly.test", dkim=None))
    assert ("broken.test", Level.FAIL) in rows(findings, "dmarc")
    assert ("blindly.test", Level.PASS) in rows(findings, "dmarc")
    assert rows(findings, "alignment") == [("From blindly.test", Level.WARN)]


def test_the_return_path_is_the_fleets_bounce_domain(fleet_yaml: Path) -> None:
    data = yaml.safe_load(fleet_yaml.read_text())
    key = fleet_yaml.parent / "token.key"
    key.touch(0o600)
    key.write_text("ab" * 32)
    data["tokens"] = {"keys": [{"id": 1, "file": str(key)}]}
    data["ingress"] = {"mail": {"eu": "127.0.0.1:2525"}}
    data["bounces"] = {"return_paths": [{"domain": "bad.test"}, {"domain": "bounce.good.test"}]}
    fleet_yaml.write_text(yaml.safe_dump(data))
    for domain, options, expected in (
        ("good.test", (), "bounce.good.test"),
        ("elsewhere.test", (), "bad.test"),
        ("good.test", ("--return-path", "good.test"), "good.test"),
    ):
        found = json.loads(run(domain, "--fleet", fleet_yaml, "--json", *options).stdout)
        assert found["return_path"] == expected


def test_json(fleet_yaml: Path) -> None:
    result = run("bad.test", "--fleet", fleet_yaml, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["domain"], found["level"]) == ("bad.test", "fail")
    row = next(row for row in found["findings"] if row["check"] == "spf")
    assert row["level"] == "fail"
    assert {demand["provider"] for demand in row["demanded_by"]} == {"google", "yahoo", "outlook"}


def test_a_source_behind_nat_is_examined_by_its_public_address(fleet_yaml: Path) -> None:
    data = yaml.safe_load(fleet_yaml.read_text())
    data["sources"][0]["ip"] = "10.0.0.5"
    del data["resolver"]["private_addresses"]
    fleet_yaml.write_text(yaml.safe_dump(data))
    hidden = json.loads(run("good.test", "--fleet", fleet_yaml, "--json").stdout)["findings"]
    assert [row["check"] for row in hidden if "eu-11" in row["subject"]] == ["source"]
    arguments = ("good.test", "--fleet", fleet_yaml, "--json", "--address", "eu-11=198.51.100.11")
    seen = json.loads(run(*arguments).stdout)["findings"]
    assert [row["check"] for row in seen if "eu-11 198.51.100.11" in row["subject"]] == ["spf", "ptr"]


def test_the_unsubscribe_headers_of_a_campaign(fleet_yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "to.csv").write_text("email,token\na@b.example,1\n")
    campaign = {
        "id": "one",
        "sender": "bounces@good.test",
        "from": "news@good.test",
        "subject": "s",
        "text": "t",
        "recipients": {"file": "to.csv"},
        "headers": {
            "List-Unsubscribe": "<mailto:u@good.test>, <https://good.test/u/{{ token }}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        },
    }
    arguments = ("good.test", "--fleet", fleet_yaml, "--json", "--campaign", tmp_path / "c.yaml")

    def level() -> str:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(campaign))
        findings = json.loads(run(*arguments).stdout)["findings"]
        return next(str(row["level"]) for row in findings if row["check"] == "one-click")

    assert level() == "pass"
    headers = campaign["headers"]
    assert isinstance(headers, dict)
    headers["List-Unsubscribe"] = "<mailto:u@good.test>"
    assert level() == "fail"
    headers["List-Unsubscribe"] = "<https://good.test/u>"
    del headers["List-Unsubscribe-Post"]
    assert level() == "fail"
    del headers["List-Unsubscribe"]
    assert level() == "fail"
    data = yaml.safe_load(fleet_yaml.read_text())
    fleet_yaml.write_text(yaml.safe_dump(data | LINKS))
    assert level() == "pass", "the fleet's links are for it"
    campaign["stream"] = "transactional"
    assert level() == "note"
