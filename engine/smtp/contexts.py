"""TLS contexts of outgoing sessions, and the sessions that may be resumed.

TLS 1.2 at least (RFC 8996). There is one context for peers that are verified by name and one for all others, so that a
resumed session has passed the same check as a full handshake: OpenSSL keeps the peer's certificates with the session,
and whoever resumes it is the peer it was made with. DANE is checked after each handshake, resumed ones too.

Sessions are kept by server name, the youngest `MAX_SESSIONS` of them, in memory. Event loops cannot pass a session to
`start_tls`; they all call `wrap_bio` of the context, so the context offers it there.

Ciphers and key sizes: where somebody vouches for the peer, those of Python (OpenSSL's security level 2). Where nobody
does, or DANE, OpenSSL's own list at level 1 (1024 bits, RSA key exchange, SHA-1 in ciphers): a weak key is as good as
any that nobody has checked, and the mail of its host would be bounced for no gain.
"""

import functools
import ssl
from collections import OrderedDict
from pathlib import Path
from typing import Any

MAX_SESSIONS = 2000
OLD_CIPHERS = "DEFAULT:@SECLEVEL=1"


class ResumingContext(ssl.SSLContext):
    """A client context that offers the last session with a server."""

    def __init__(self, protocol: int) -> None:
        super().__init__()
        self.kept: OrderedDict[str, ssl.SSLSession] = OrderedDict()

    def wrap_bio(self, incoming: Any, outgoing: Any, *args: Any, **options: Any) -> ssl.SSLObject:
        name = options.get("server_hostname") or (args[1] if len(args) > 1 else None)
        wrapped = super().wrap_bio(incoming, outgoing, *args, **options)
        session = self.kept.get(str(name))
        if session is not None:
            wrapped.session = session
        return wrapped

    def keep(self, name: str, session: ssl.SSLSession | None) -> None:
        """Remember a session that may be resumed."""
        if session is None or not session.has_ticket:
            return
        self.kept[name] = session
        self.kept.move_to_end(name)
        if len(self.kept) > MAX_SESSIONS:
            self.kept.popitem(last=False)


class Contexts:
    """`encrypting`: whoever the peer is. `verifying`: with a certificate of the right name, by the system's
    authorities or those of a file (PEM).
    """

    def __init__(self, authorities: Path | None = None) -> None:
        self._authorities = authorities
        self.encrypting = _context()
        self.encrypting.check_hostname = False
        self.encrypting.verify_mode = ssl.CERT_NONE
        self.encrypting.set_ciphers(OLD_CIPHERS)

    @functools.cached_property
    def verifying(self) -> ResumingContext:
        context = _context()
        context.hostname_checks_common_name = False  # RFC 8461 section 4.2, RFC 9525 section 2
        if self._authorities is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(cafile=self._authorities)
        return context


def _context() -> ResumingContext:
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
