"""The edge of the doctor: what it connects to itself, only if asked to (`--probe`).

One SMTP session per MX host up to STARTTLS, and one HTTPS request for the MTA-STS policy. Certificates are verified
against the system's authorities. Each step has a deadline; answers are bounded; redirects are not followed (RFC 8461
section 3.3).
"""

import asyncio
import http.client
import ipaddress
import smtplib
import socket
import ssl
import time
from collections.abc import Callable

from engine.doctor.check_servers import TlsAnswer
from engine.doctor.questions import Questions

TIMEOUT_S = 10.0
MAX_POLICY = 64 << 10  # RFC 8461 section 3.2
IsAllowed = Callable[[ipaddress.IPv4Address | ipaddress.IPv6Address], bool]


class Probe:
    """TlsProbe and PolicyProbe. `context` is for tests; ports other than 25 and 443 too."""

    def __init__(
        self,
        questions: Questions,
        is_allowed: IsAllowed,
        *,
        helo: str,
        context: ssl.SSLContext | None = None,
        smtp_port: int = 25,
        https_port: int = 443,
    ) -> None:
        self._questions = questions
        self._is_allowed = is_allowed
        self._helo = helo
        self._context = context or ssl.create_default_context()
        self._smtp_port = smtp_port
        self._https_port = https_port

    async def starttls(self, address: str, host: str) -> TlsAnswer:
        return await asyncio.to_thread(self._starttls, address, host)

    def _starttls(self, address: str, host: str) -> TlsAnswer:
        try:
            with smtplib.SMTP(local_hostname=self._helo, timeout=TIMEOUT_S) as session:
                session.connect(address, self._smtp_port)
                session.ehlo()
                if not session.has_extn("starttls"):
                    return TlsAnswer("the server offers no STARTTLS")
                # smtplib verifies the certificate against the name that it believes to have connected to
                session._host = host  # type: ignore[attr-defined]
                session.starttls(context=self._context)
                assert isinstance(session.sock, ssl.SSLSocket)
                certificate = session.sock.getpeercert() or {}
                ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
                version = session.sock.version() or ""
                session.ehlo()
                return TlsAnswer("", version, (ends - time.time()) / 86400)
        except ssl.SSLCertVerificationError as error:
            return TlsAnswer(f"the certificate is not good for {host}: {error.verify_message}")
        except (OSError, smtplib.SMTPException) as error:
            return TlsAnswer(f"no TLS session: {error or type(error).__name__}")

    async def fetch_policy(self, domain: str) -> str:
        host = f"mta-sts.{domain}"
        found = await self._questions.all_addresses(host)
        usable = [a for a in found.addresses if self._is_allowed(ipaddress.ip_address(a))]
        if not usable:
            raise ConnectionError(f"{host} has no public address: {found.reason}".rstrip(": "))
        return await asyncio.to_thread(self._fetch, usable[0], host)

    def _fetch(self, address: str, host: str) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        try:
            with (
                socket.create_connection((address, self._https_port), TIMEOUT_S) as plain,
                self._context.wrap_socket(plain, server_hostname=host) as tls,
            ):
                tls.sendall(
                    f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                )
                response = http.client.HTTPResponse(tls, method="GET")
                response.begin()
                if response.status != http.client.OK:
                    raise ConnectionError(f"HTTP status {response.status}, wanted is 200 without a redirect")
                kind = response.headers.get_content_type()
                if kind != "text/plain":
                    raise ConnectionError(f"content type {kind[:60]}, wanted is text/plain")
                return _body(response, deadline)
        except ssl.SSLCertVerificationError as error:
            raise ConnectionError(f"the certificate is not good for {host}: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{error or type(error).__name__}") from None


def _body(response: http.client.HTTPResponse, deadline: float) -> str:
    data = b""
    while piece := response.read1(8192):
        data += piece
        if len(data) > MAX_POLICY:
            raise ConnectionError(f"the policy is longer than {MAX_POLICY} bytes")
        if time.monotonic() > deadline:
            raise ConnectionError(f"the policy does not come within {TIMEOUT_S:g} s")
    return data.decode("utf-8", "replace")
