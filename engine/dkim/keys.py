"""Private keys: read from PEM files, looked at again every few seconds, never shown, never sent anywhere.

A key that cannot be read at first use is an error, and mail that needs it waits (it is never sent unsigned). A
changed file that cannot be read, half written perhaps, leaves the key before it in use, with a log line that names
the file and not its content. A KeyRing and a SigningKey refuse to be pickled, so no key reaches Ray's object store.

The only importer of `cryptography` for signing. Its RSA releases the GIL, so signing scales with threads.
"""

import base64
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from engine.config.signing import DkimConfig, DkimDomain

log = logging.getLogger(__name__)

MIN_RSA_BITS = 2048  # RFC 8301 section 3.2 wants at least 1024, and 2048 where that can be
MAX_FILE_BYTES = 64 << 10


class KeyFileError(ValueError):
    """A key file cannot be used; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """`sign` takes the octets that are signed. `algorithm` is the value of a=."""

    domain: str
    selector: str
    algorithm: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    public: bytes = field(repr=False, default=b"")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")

    def record(self) -> str:
        """The TXT record to publish at `SELECTOR._domainkey.DOMAIN`."""
        kind = "ed25519" if self.algorithm == "ed25519-sha256" else "rsa"
        return f"v=DKIM1; k={kind}; p={base64.b64encode(self.public).decode()}"


def read_key(domain: str, selector: str, file: Path) -> SigningKey:
    """Raises KeyFileError; OSError becomes one too."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise KeyFileError(f"{file}: larger than a key file can be ({MAX_FILE_BYTES} bytes)")
        data = file.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # what the library says could quote the file
        raise KeyFileError(f"{file}: not an unencrypted private key in PEM form") from None
    return signing_key(domain, selector, private, str(file))


def signing_key(domain: str, selector: str, private: Any, origin: str = "key") -> SigningKey:
    """From a key object of `cryptography`; raises KeyFileError."""
    if isinstance(private, RSAPrivateKey):
        if private.key_size < MIN_RSA_BITS:
            raise KeyFileError(
                f"{origin}: RSA of {private.key_size} bits: allowed are {MIN_RSA_BITS} or more"
            )
        padding, digest = PKCS1v15(), SHA256()
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return SigningKey(
            domain, selector, "rsa-sha256", lambda data: private.sign(data, padding, digest), public
        )
    if isinstance(private, Ed25519PrivateKey):
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return SigningKey(
            domain,
            selector,
            "ed25519-sha256",
            lambda data: private.sign(sha256(data).digest()),  # RFC 8463 section 3
            public,
        )
    raise KeyFileError(f"{origin}: {type(private).__name__}: allowed are RSA and Ed25519 keys")


class KeyRing:
    """The keys of a configuration by domain of the From header. Used from any thread.

    `now` is the monotonic time in seconds.
    """

    def __init__(self, config: DkimConfig, now: Callable[[], float]) -> None:
        self._now = now
        self._reload_s = config.reload
        self._files = {
            (domain.domain, key.selector): _File(domain.domain, key.selector, key.file)
            for domain in config.domains
            for key in domain.keys
        }
        self._by_pattern = {pattern: domain for domain in config.domains for pattern in domain.patterns()}
        self._for_all = tuple(domain for domain in config.domains if domain.sign_all)
        self._lock = threading.Lock()
        self._looked_at = now()

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled")

    def keys(self, from_domain: str) -> tuple[SigningKey, ...]:
        """The keys that sign for a domain of From, () if none do. Raises KeyFileError if one cannot be read."""
        self._refresh()
        return tuple(
            self._files[domain.domain, key.selector].key()
            for domain in self._domains(from_domain)
            for key in domain.keys
        )

    def covers(self, from_domains: Sequence[str]) -> bool:
        """Whether all these domains of one From field have the same signing domain."""
        return len({self._matching(domain) for domain in from_domains}) == 1

    def _domains(self, from_domain: str) -> list[DkimDomain]:
        own = self._matching(from_domain)
        chosen = [] if own is None else [own]
        return chosen + [domain for domain in self._for_all if domain is not own]

    def _matching(self, from_domain: str) -> DkimDomain | None:
        found = self._by_pattern.get(from_domain)
        rest = from_domain
        while found is None and rest:
            rest = rest.partition(".")[2]
            found = self._by_pattern.get(f"*.{rest}" if rest else "*")
        return found

    def _refresh(self) -> None:
        now = self._now()
        if now - self._looked_at < self._reload_s:
            return
        with self._lock:
            if now - self._looked_at < self._reload_s:
                return
            self._looked_at = now
            for file in self._files.values():
                file.refresh()


class _File:
    """One key file and what was last read from it."""

    def __init__(self, domain: str, selector: str, path: Path) -> None:
        self._domain = domain
        self._selector = selector
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._key: SigningKey | None = None

    def key(self) -> SigningKey:
        if self._key is None:
            stamp = self._look()
            self._key = read_key(self._domain, self._selector, self._path)
            self._stamp = stamp
        return self._key

    def refresh(self) -> None:
        stamp = self._look()
        if self._key is None or stamp == self._stamp:
            return
        try:
            self._key = read_key(self._domain, self._selector, self._path)
        except KeyFileError as error:
            log.error("DKIM key not replaced: %s", error)
        else:
            log.info("DKIM key of %s, selector %s, read again", self._domain, self._selector)
        self._stamp = stamp

    def _look(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
