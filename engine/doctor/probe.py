"""The edge of the doctor: what it connects to itself, only if asked to (`--probe`).

One SMTP session per MX host up to STARTTLS, and the request for the MTA-STS policy that deliveries make too.
Certificates are verified against the system's authorities. Each step has a deadline.
"""

import asyncio
import ipaddress
import smtplib
import ssl
import time
from collections.abc import Callable

from engine.doctor.check_servers import TlsAnswer
from engine.doctor.questions import Questions
from engine.tls.policy import Fault
from engine.tls.sts_fetch import FetchFailed, fetch_policy

TIMEOUT_S = 10.0
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

    async def fetch_policy(self, domain: str) -> bytes:
        found = await self._questions.all_addresses(f"mta-sts.{domain}")
        usable = [a for a in found.addresses if self._is_allowed(ipaddress.ip_address(a))]
        if not usable:
            raise FetchFailed(Fault.STS_FETCH, f"no public address {found.reason}".rstrip())
        return await fetch_policy(
            domain, usable, context=self._context, timeout_s=TIMEOUT_S, port=self._https_port
        )
