"""Open an SMTP session: connect, greeting, EHLO, STARTTLS, EHLO again, AUTH. The only importer of aiosmtplib.

Returns the open transport with the extensions of the last EHLO; the caller takes the transport over with
`set_protocol`. A failure is a value: the phase, and the peer's reply or the reason why there was none. The
whole opening has one deadline (RFC 5321 section 4.5.3.2 asks for five minutes per command; a host that needs
more than `timeout_s` for all of it is treated as down and the next one is asked).

TLS: `required` means a handshake before anything is sent, or a failure; there is no way back to plaintext.
Certificates of MX hosts are not verified (an MX name from unsigned DNS proves nothing; DANE and MTA-STS are
not in this release), those of smart hosts with credentials are. Plaintext bytes behind the 220 to STARTTLS
are discarded by aiosmtplib, and the EHLO state with them (RFC 3207 section 4.2).
"""

import asyncio
import contextlib
import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiosmtplib

from engine.smtp.policy import FailureReason, Phase
from engine.values.reply import Reply
from native.replies import ReplyParser

TLS_DISABLED = "disabled"
_BIND_ERRORS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES, errno.EADDRINUSE})


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, from where, and as whom. `host` is the name for TLS and for the records."""

    host: str
    address: str
    port: int
    source_ip: str
    ehlo: str
    tls: str
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open session. `extensions`: EHLO keyword in lower case -> parameters."""

    transport: Any
    extensions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OpenFailure:
    """The session did not come about. `answer` is for the policy, `reply` for the records."""

    phase: Phase
    answer: Reply | FailureReason
    reply: Reply


async def open_session(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
    """Open one session within `timeout_s` seconds."""
    client = aiosmtplib.SMTP(
        hostname=target.address,
        port=target.port,
        local_hostname=target.ehlo,
        source_address=(target.source_ip, 0),
        timeout=timeout_s,
        start_tls=False,
        use_tls=False,
    )
    opening = _Opening(client, target)
    try:
        async with asyncio.timeout(timeout_s):
            failure = await opening.run()
    except TimeoutError:
        failure = opening.failed(FailureReason.TIMEOUT)
    except asyncio.CancelledError:
        client.close()
        raise
    if failure is not None:
        client.close()
        return failure
    transport, extensions = client.transport, dict(client.esmtp_extensions)
    if transport is None or transport.is_closing():
        return opening.failed(FailureReason.LOST)
    # the client forgets the transport, so that its own end does not close it
    client.transport = None
    client.protocol = None
    return Opened(transport, extensions)


class _Opening:
    """The steps, and in which of them we are."""

    def __init__(self, client: aiosmtplib.SMTP, target: Target) -> None:
        self._client = client
        self._target = target
        self._phase = Phase.CONNECT

    async def run(self) -> OpenFailure | None:
        try:
            await self._client.connect()
            self._phase = Phase.EHLO
            await self._hello()
            if self._target.tls != TLS_DISABLED:
                self._phase = Phase.STARTTLS
                if not self._client.supports_extension("starttls"):
                    return self.failed(FailureReason.NO_TLS)
                await self._client.starttls(
                    server_hostname=self._target.host, tls_context=self._tls_context()
                )
                self._phase = Phase.EHLO
                await self._hello()
            if self._target.username:
                self._phase = Phase.AUTH
                await self._client.login(self._target.username, self._target.password)
        except aiosmtplib.SMTPConnectResponseError as error:
            self._phase = Phase.GREETING
            return self._refused(error.code, error.message)
        except aiosmtplib.SMTPConnectError as error:
            return self.failed(_connect_reason(error), str(error))
        except aiosmtplib.SMTPResponseException as error:
            if error.code < 200:
                return self.failed(FailureReason.PROTOCOL, error.message)
            return self._refused(error.code, error.message)
        except ssl.SSLError as error:
            return self.failed(FailureReason.TLS_FAILED, str(error))
        except aiosmtplib.SMTPTimeoutError:
            return self.failed(FailureReason.TIMEOUT)
        except (aiosmtplib.SMTPServerDisconnected, OSError) as error:
            return self.failed(FailureReason.LOST, str(error))
        except aiosmtplib.SMTPException as error:
            reason = FailureReason.NO_AUTH if self._phase is Phase.AUTH else FailureReason.PROTOCOL
            return self.failed(reason, str(error))
        return None

    async def _hello(self) -> None:
        """EHLO, or HELO if the host knows no better."""
        try:
            await self._client.ehlo()
        except aiosmtplib.SMTPHeloError:
            if not self._client.is_connected or self._target.tls != TLS_DISABLED:
                raise
            await self._client.helo()

    def _tls_context(self) -> ssl.SSLContext:
        return _VERIFYING if self._target.username else _ENCRYPTING

    def failed(self, reason: FailureReason, detail: str = "") -> OpenFailure:
        text = f"{_WORDS[self._phase]}: {reason}"
        if detail and reason not in (FailureReason.TIMEOUT, FailureReason.NO_TLS):
            text = f"{text} ({detail})"
        return OpenFailure(self._phase, reason, Reply(0, _ENHANCED.get(reason, "4.4.2"), text[:1024]))

    def _refused(self, code: int, message: str) -> OpenFailure:
        reply = _reply_of(code, message)
        return OpenFailure(self._phase, reply, reply)


_WORDS = {
    Phase.CONNECT: "connect",
    Phase.GREETING: "greeting",
    Phase.EHLO: "EHLO",
    Phase.STARTTLS: "STARTTLS",
    Phase.AUTH: "AUTH",
}
_ENHANCED = {
    FailureReason.UNREACHABLE: "4.4.1",
    FailureReason.TIMEOUT: "4.4.1",
    FailureReason.BIND: "4.3.5",
    FailureReason.NO_TLS: "4.7.10",
    FailureReason.TLS_FAILED: "4.7.5",
    FailureReason.NO_AUTH: "4.7.8",
    FailureReason.PROTOCOL: "4.5.0",
}


def _connect_reason(error: BaseException) -> FailureReason:
    """Whether the peer or our own source address is to blame."""
    if isinstance(error, aiosmtplib.SMTPTimeoutError):
        return FailureReason.TIMEOUT
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _BIND_ERRORS:
            return FailureReason.BIND
        cause = cause.__cause__
    return FailureReason.UNREACHABLE


def _reply_of(code: int, message: str) -> Reply:
    """Through the one parser, which sanitises."""
    lines = message.encode("utf-8", "replace").split(b"\n")
    wire = b"".join(b"%03d-%s\r\n" % (code, line.replace(b"\r", b" ")[:4096]) for line in lines[:-1])
    wire += b"%03d %s\r\n" % (code, lines[-1].replace(b"\r", b" ")[:4096])
    with contextlib.suppress(ValueError):
        replies = ReplyParser().feed(wire)
        if replies:
            return Reply(*replies[0])
    return Reply(0, "4.5.0", "malformed reply")


def _context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


_ENCRYPTING = _context(verify=False)
_VERIFYING = _context(verify=True)
