"""Keys on disk, their DNS records, and two verifiers that are not ours: dkimpy and Debian's opendkim."""

import functools
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from engine.config.signing import DkimConfig
from engine.dkim.keys import KeyRing

ROOT = Path(__file__).parents[2]
OPENDKIM = ROOT / ".tools" / "usr" / "sbin" / "opendkim"


@functools.cache
def rsa_key(number: int = 0) -> Any:
    """One of a few RSA keys: making them is slow."""
    return generate_private_key(65537, 2048)


@functools.cache
def ed25519_key(number: int = 0) -> Any:
    return Ed25519PrivateKey.generate()


def write_key(path: Path, key: Any) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def dkim_section(directory: Path, *domains: str, **options: Any) -> dict[str, Any]:
    """A `dkim` section with an RSA and an Ed25519 key for each domain."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for domain in domains:
        rsa = write_key(directory / f"{domain}.rsa.pem", rsa_key())
        ed25519 = write_key(directory / f"{domain}.ed25519.pem", ed25519_key())
        keys = [{"selector": "r1", "file": str(rsa)}, {"selector": "e1", "file": str(ed25519)}]
        entries.append({"domain": domain, "keys": keys})
    return {"domains": entries, **options}


def ring_of(directory: Path, *domains: str) -> KeyRing:
    return KeyRing(DkimConfig.model_validate(dkim_section(directory, *domains)), time.monotonic)


def records_of(ring: KeyRing, *domains: str) -> dict[str, str]:
    """TXT records by name, as published for these domains."""
    return {
        f"{key.selector}._domainkey.{key.domain}": key.record()
        for domain in domains
        for key in ring.keys(domain)
    }


def verified(message: bytes, records: Mapping[str, str], count: int) -> bool:
    """Whether dkimpy finds so many signatures, all of them good."""

    def lookup(name: bytes, timeout: float = 0) -> str | None:
        return records.get(name.decode().rstrip("."))

    found = len(re.findall(rb"^DKIM-Signature:", message.partition(b"\r\n\r\n")[0], re.MULTILINE))
    return found == count and all(
        dkim.DKIM(message).verify(idx=index, dnsfunc=lookup) for index in range(count)
    )


def opendkim_results(directory: Path, messages: Sequence[bytes], records: Mapping[str, str]) -> list[str]:
    """The result of every signature of every message (pass, fail, ...), as Debian's opendkim sees them."""
    if not OPENDKIM.exists():
        pytest.fail("tools/install_test_servers.sh has not been run")
    library = next((ROOT / ".tools" / "usr" / "lib").glob("*-linux-gnu"))
    (directory / "public-keys").write_text("".join(f"{name} {record}\n" for name, record in records.items()))
    (directory / "conf").write_text(
        f"Mode v\nTestPublicKeys {directory}/public-keys\nTemporaryDirectory {directory}\n"
        "Syslog no\nAlwaysAddARHeader yes\nAuthservID verifier.test\n"
    )
    results: list[str] = []
    for start in range(0, len(messages), 100):
        names = []
        for number, message in enumerate(messages[start : start + 100]):
            names.append(directory / f"{number}.eml")
            names[-1].write_bytes(message)
        done = subprocess.run(
            [OPENDKIM, "-x", directory / "conf", "-vv", "-t", ",".join(map(str, names))],
            env={**os.environ, "LD_LIBRARY_PATH": f"{library}:{library.parent}"},
            capture_output=True,
            timeout=120,
            check=False,
        )
        results += re.findall(r"\bdkim=(\w+)", done.stdout.decode("utf-8", "replace"))
    return results
