"""The certificates of the listeners: TLS 1.2 at least, read again when their files have changed."""

import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)


class Certificate:
    """A TLS context whose files are read again when they have changed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """OSError, ssl.SSLError: the files cannot be used."""
        self._files = certificate, key
        self._seen = self._stamp()
        self._context = self._load()

    def _stamp(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self._files)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        return context

    def context(self) -> ssl.SSLContext:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._context = self._load()
                self._seen = stamp
        except OSError as error:  # ssl.SSLError is one; half-written files are whole a moment later
            log.error("certificate %s: the former one stays in use: %s", self._files[0], error)
        return self._context

    def watching(self) -> ssl.SSLContext:
        """A context for a server that keeps the one it is given: every handshake looks at the files."""

        def choose(
            handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
        ) -> None:
            handshake.context = self.context()

        context = self._load()
        context.sni_callback = choose
        return context
