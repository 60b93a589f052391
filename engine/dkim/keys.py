"""Private keys: read from PEM files, looked at again every few seconds, never shown, never sent anywhere.

A key that cannot be read at first use is an error, and mail that needs it waits (it is never sent unsigned). A
changed file that cannot be read, half written perhaps, leaves the key before it in use; so does one that is gone. A
file that every user of the machine may read is refused. What is wrong is logged and told as a notice, once, with the
file's name and not its content. A KeyRing and a SigningKey refuse to be pickled, so no key reaches Ray's object store.

The only importer of `cryptography` for signing. Its RSA releases the GIL, so signing scales with threads.
"""

import base64
import logging
import os
import stat
import threading
from collections import deque
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
MAX_NOTICES = 64  # not yet taken; the oldest goes first


class KeyFileError(ValueError):
    """A key file cannot be used; the message names the file and says why."""


class TenantRefused(ValueError):
    """A tenant sends in the name of a domain that others sign for."""


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
        # not waiting for a writer, if it is a pipe
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{file}: not a file")
            if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(f"{file}: mode {mode:04o}: allowed is a file that not every user can read")
            if status.st_size > MAX_FILE_BYTES:
                raise KeyFileError(f"{file}: larger than a key file can be ({MAX_FILE_BYTES} bytes)")
            data = opened.read(MAX_FILE_BYTES + 1)
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
        self._notices: deque[tuple[str, str]] = deque(maxlen=MAX_NOTICES)
        self._files = {
            (domain.domain, key.selector): _File(domain.domain, key.selector, key.file, self._notices)
            for domain in config.domains
            for key in domain.keys
        }
        self._config = config
        self._lock = threading.Lock()
        self._looked_at = now()

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled")

    def keys(self, from_domain: str, tenant: str = "default") -> tuple[SigningKey, ...]:
        """The keys that sign a tenant's mail for a domain of From, () if none do.

        Raises KeyFileError if one cannot be read, TenantRefused if the domain is not the tenant's.
        """
        self._refresh()
        return tuple(
            self._files[domain.domain, key.selector].key()
            for domain in self._domains(from_domain, tenant)
            for key in domain.keys
        )

    def covers(self, from_domains: Sequence[str]) -> bool:
        """Whether all these domains of one From field have the same signing domain."""
        found = [self._config.signing_domain(domain) for domain in from_domains]
        return all(domain is found[0] for domain in found)

    def take_notices(self) -> list[tuple[str, str]]:
        """(file, what happened) since the last call: a file that cannot be used, or can be again."""
        notices = []
        while self._notices:
            notices.append(self._notices.popleft())
        return notices

    def _domains(self, from_domain: str, tenant: str) -> list[DkimDomain]:
        own = self._config.signing_domain(from_domain)
        if own is not None and not own.is_for(tenant):
            raise TenantRefused(
                f"tenant {tenant} may not send as {from_domain}: {own.domain} is not its domain"
            )
        return self._config.signing_domains(from_domain, tenant)

    def _refresh(self) -> None:
        now = self._now()
        if now - self._looked_at < self._reload_s:
            return
        with self._lock:
            if now - self._looked_at < self._reload_s:
                return
            for file in self._files.values():
                file.refresh()
            self._looked_at = now  # last, so that no other thread signs with a key that is being replaced


class _File:
    """One key file and what was last read from it. A failure holds until the next look."""

    def __init__(self, domain: str, selector: str, path: Path, notices: deque[tuple[str, str]]) -> None:
        self._domain = domain
        self._selector = selector
        self._path = path
        self._notices = notices
        self._stamp: tuple[int, ...] = ()
        self._key: SigningKey | None = None
        self._failure: str = ""

    def key(self) -> SigningKey:
        key = self._key
        if key is not None:
            return key
        if not self._failure:
            self._read()
        if self._key is None:
            raise KeyFileError(self._failure)
        return self._key

    def refresh(self) -> None:
        """Look at a file that has been asked for, and read it if it changed."""
        if (self._key is not None or self._failure) and (self._key is None or self._look() != self._stamp):
            self._read()

    def _read(self) -> None:
        stamp = self._look()
        try:
            key = read_key(self._domain, self._selector, self._path)
        except KeyFileError as error:
            if str(error) != self._failure:
                kept = "" if self._key is None else "; the key read before stays in use"
                log.error("DKIM: %s%s", error, kept)
                self._notices.append((str(self._path), f"{error}{kept}"))
            self._failure = str(error)
        else:
            if self._key is not None or self._failure:
                what = f"DKIM key of {self._domain}, selector {self._selector}, read again"
                log.info(what)
                if self._failure:
                    self._notices.append((str(self._path), what))
            self._key = key
            self._failure = ""
        self._stamp = stamp

    def _look(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode
