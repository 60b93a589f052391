"""Key files: which are refused, reloading, domains, and that no key can leave."""

import copy
import logging
import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from engine.config.signing import DkimConfig
from engine.dkim import keys
from engine.dkim.keys import KeyFileError, KeyRing, SigningKey, TenantRefused, read_key
from tests.support.dkim import dkim_section, ed25519_key, ring_of, rsa_key, write_key


class Now:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_algorithms(tmp_path: Path) -> None:
    keys = ring_of(tmp_path, "example.com").keys("example.com")
    assert [(key.selector, key.algorithm) for key in keys] == [
        ("r1", "rsa-sha256"),
        ("e1", "ed25519-sha256"),
    ]
    assert keys[0].record().startswith("v=DKIM1; k=rsa; p=MII")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "not an unencrypted private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n",
            "not an unencrypted private key",
        ),
        (b"x" * 70_000, "larger than a key file"),
    ],
)
def test_refused_without_showing_the_content(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.touch(mode=0o600)
        file.write_bytes(content)
    with pytest.raises(KeyFileError, match=message) as refused:
        read_key("example.com", "s", file)
    assert str(file) in str(refused.value)
    assert "secret" not in str(refused.value)


def test_weak_and_other_keys_are_refused(tmp_path: Path) -> None:
    weak = write_key(tmp_path / "weak", generate_private_key(65537, 1024))
    with pytest.raises(KeyFileError, match="1024 bits: allowed are 2048"):
        read_key("example.com", "s", weak)
    curve = write_key(tmp_path / "ec", generate_ec(SECP256R1()))
    with pytest.raises(KeyFileError, match="allowed are RSA and Ed25519"):
        read_key("example.com", "s", curve)


def test_a_changed_file_is_used_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = Now()
    config = DkimConfig.model_validate(dkim_section(tmp_path, "example.com", reload="10s"))
    ring = KeyRing(config, now)
    before = ring.keys("example.com")
    file = config.domains[0].keys[1].file
    write_key(file, ed25519_key(1))
    os.utime(file, ns=(1, 1))
    assert ring.keys("example.com") == before, "not looked at yet"
    now.seconds = 10.0
    after = ring.keys("example.com")
    assert after[0] is before[0]
    assert after[1].record() != before[1].record()
    file.write_bytes(b"half a fi")
    now.seconds = 20.0
    with caplog.at_level(logging.ERROR):
        assert ring.keys("example.com") == after
    assert "stays in use" in caplog.text
    assert "half a fi" not in caplog.text
    assert [name for name, _ in ring.take_notices()] == [str(file)]
    file.unlink()
    now.seconds = 30.0
    assert ring.keys("example.com") == after
    [(name, text)] = ring.take_notices()
    assert name == str(file)
    assert "cannot be read: No such file" in text
    now.seconds = 40.0
    ring.keys("example.com")
    assert ring.take_notices() == [], "told once"
    write_key(file, ed25519_key(2))
    now.seconds = 50.0
    assert ring.keys("example.com")[1].record() != after[1].record()
    assert "read again" in ring.take_notices()[0][1]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Now()
    config = DkimConfig.model_validate(dkim_section(tmp_path, "example.com", reload="10s"))
    ring = KeyRing(config, now)
    file = config.domains[0].keys[1].file
    read = keys.read_key

    def reading(domain: str, selector: str, path: Path) -> SigningKey:
        found = read(domain, selector, path)
        if path == file and now.seconds == 0.0:
            write_key(file, ed25519_key(1))
            os.utime(file, ns=(1, 1))
        return found

    monkeypatch.setattr(keys, "read_key", reading)
    first = ring.keys("example.com")[1].record()
    now.seconds = 10.0
    assert ring.keys("example.com")[1].record() != first


def test_a_key_that_cannot_be_read_is_an_error_until_it_can(tmp_path: Path) -> None:
    now = Now()
    config = DkimConfig.model_validate(dkim_section(tmp_path, "example.com", reload="10s"))
    file = config.domains[0].keys[0].file
    file.rename(tmp_path / "away")
    ring = KeyRing(config, now)
    for _ in range(2):
        with pytest.raises(KeyFileError, match=f"{file}: cannot be read"):
            ring.keys("example.com")
    assert len(ring.take_notices()) == 1
    (tmp_path / "away").rename(file)
    with pytest.raises(KeyFileError):
        ring.keys("example.com")
    now.seconds = 10.0
    assert len(ring.keys("example.com")) == 2
    assert "read again" in ring.take_notices()[0][1]


def test_a_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    now = Now()
    config = DkimConfig.model_validate(dkim_section(tmp_path, "example.com", reload="10s"))
    file = config.domains[0].keys[0].file
    file.chmod(0o604)
    with pytest.raises(KeyFileError, match="mode 0604: allowed is a file that not every user can read"):
        KeyRing(config, now).keys("example.com")
    file.chmod(0o640)
    ring = KeyRing(config, now)
    ring.keys("example.com")
    file.chmod(0o644)
    now.seconds = 10.0
    ring.keys("example.com")
    assert "mode 0644" in ring.take_notices()[0][1]
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        read_key("example.com", "s", tmp_path / "pipe")


def test_a_domain_of_some_tenants_is_refused_to_others(tmp_path: Path) -> None:
    section = dkim_section(tmp_path, "example.com", "esp.example")
    section["domains"][0]["tenants"] = ["acme"]
    section["domains"][1] |= {"tenants": ["acme", "other"], "sign_all": True}
    ring = KeyRing(DkimConfig.model_validate(section), Now())
    assert {key.domain for key in ring.keys("example.com", "acme")} == {"example.com", "esp.example"}
    with pytest.raises(TenantRefused, match=r"tenant other may not send as mail\.example\.com"):
        ring.keys("mail.example.com", "other")
    assert {key.domain for key in ring.keys("example.net", "other")} == {"esp.example"}
    assert ring.keys("example.net", "third") == ()


def test_a_signature_outlives_the_time_in_the_queue() -> None:
    with pytest.raises(ValueError, match="margin: allowed is 1h or more"):
        DkimConfig.model_validate({"margin": "59m"})


def test_the_most_specific_domain_signs_and_one_for_all_beside_it(tmp_path: Path) -> None:
    section = dkim_section(tmp_path, "example.com", "news.example.com", "esp.example")
    section["domains"][0]["senders"] = ["example.com", "*.example.com", "example.org"]
    section["domains"][2]["sign_all"] = True
    ring = KeyRing(DkimConfig.model_validate(section), Now())

    def domains(sender: str) -> list[str]:
        return [key.domain for key in ring.keys(sender) if key.selector == "r1"]

    assert domains("example.com") == ["example.com", "esp.example"]
    assert domains("a.b.example.com") == ["example.com", "esp.example"]
    assert domains("x.news.example.com") == ["news.example.com", "esp.example"]
    assert domains("example.org") == ["example.com", "esp.example"]
    assert domains("sub.example.org") == ["esp.example"]
    assert ring.covers(["example.com", "mail.example.com"])
    assert not ring.covers(["example.com", "news.example.com"])


def test_keys_are_not_pickled_copied_or_shown(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "example.com")
    key = ring.keys("example.com")[0]
    for secret in (ring, key):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(ring)
    assert "sign" not in repr(key)
    assert str(rsa_key().private_numbers().d)[:20] not in repr(ring) + repr(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "*.example.com"}, "without"),
        ({"keys": []}, "at least 1"),
        ({"keys": [{"selector": "a", "file": "x"}] * 2}, "each selector once"),
        ({"keys": [{"selector": "a b", "file": "x"}]}, "allowed are"),
        ({"key": "-----BEGIN"}, "Extra inputs"),
    ],
)
def test_configuration_refused(change: dict[str, object], message: str) -> None:
    entry = {"domain": "example.com", "keys": [{"selector": "a", "file": "x"}], **change}
    with pytest.raises(ValueError, match=message):
        DkimConfig.model_validate({"domains": [entry]})


def test_two_domains_cannot_sign_for_the_same_senders() -> None:
    keys = [{"selector": "a", "file": "x"}]
    with pytest.raises(ValueError, match=r"both example.com and example.net sign for example.com"):
        DkimConfig.model_validate(
            {
                "domains": [
                    {"domain": "example.com", "keys": keys},
                    {"domain": "example.net", "keys": keys, "senders": ["example.com"]},
                ]
            }
        )
