"""Open an SMTP session: connect, greeting, EHLO, STARTTLS, EHLO again, AUTH. The only importer of aiosmtplib.

Returns the open transport with the extensions of the last EHLO; the caller takes the transport over with
`set_protocol`. A failure is a value: the phase, and the peer's reply or the reason why there was none. The
whole opening has one deadline (RFC 5321 section 4.5.3.2 asks for five minutes per command; a host that needs
more than `timeout_s` for all of it is treated as down and the next one is asked).

TLS: what the target's policy demands happens before anything is sent, or the session fails; there is no way back to
plaintext. What was said before the handshake is forgotten (RFC 3207 section 4.2), and one byte in the clear behind the
220 to STARTTLS is a failure (engine/smtp/conversation.py). A policy that is only being tested (MTA-STS mode `testing`)
is tried first; if the certificate or the handshake fails it, a second connection goes without, and the result tells.
"""

import asyncio
import contextlib
import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosmtplib

from engine.smtp.contexts import Contexts, ResumingContext
from engine.smtp.conversation import Desynchronised, Injected, Watch
from engine.smtp.policy import FailureReason, Phase
from engine.tls.dane import check_chain
from engine.tls.policy import Check, Fault, HostPolicy, TlsFault, TlsResult
from engine.values.reply import Reply
from native.replies import ReplyParser

_BIND_ERRORS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES, errno.EADDRINUSE})


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, from where, and as whom. `host` is the name for TLS and for the records."""

    host: str
    address: str
    port: int
    source_ip: str
    ehlo: str
    policy: HostPolicy
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open session. `extensions`: EHLO keyword in lower case -> parameters. `tls`: None in plaintext.
    `wire`: the transport below that of TLS, whose buffer the other does not count.
    """

    transport: Any
    extensions: Mapping[str, str]
    tls: TlsResult | None = None
    wire: Any = None


@dataclass(frozen=True, slots=True)
class OpenFailure:
    """The session did not come about. `answer` is for the policy, `reply` for the records. `fault`: TLS is why."""

    phase: Phase
    answer: Reply | FailureReason
    reply: Reply
    fault: TlsFault | None = None


class SessionOpener:
    """Opens sessions; keeps what TLS needs. `authorities`: file of those that certificates are checked against."""

    def __init__(self, authorities: Path | None = None) -> None:
        self._contexts = Contexts(authorities)

    async def __call__(self, target: Target, *, timeout_s: float) -> Opened | OpenFailure:
        """Open one session within `timeout_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        result = _with_fault(await self._open(target, deadline), target.policy.fault)
        if not isinstance(result, OpenFailure) or not target.policy.is_testing:
            return result
        if result.answer not in (FailureReason.UNTRUSTED, FailureReason.TLS_FAILED):
            return result  # testing or not, TLS is required
        relaxed = replace(target, policy=replace(target.policy, check=Check.ENCRYPT))
        return _with_fault(await self._open(relaxed, deadline), result.fault)

    async def _open(self, target: Target, deadline: float) -> Opened | OpenFailure:
        left_s = max(0.001, deadline - asyncio.get_running_loop().time())
        client = aiosmtplib.SMTP(
            hostname=target.address,
            port=target.port,
            local_hostname=target.ehlo,
            source_address=(target.source_ip, 0),
            timeout=left_s,
            start_tls=False,
            use_tls=False,
        )
        verified = target.policy.check is Check.NAME
        opening = _Opening(
            client, target, self._contexts.verifying if verified else self._contexts.encrypting
        )
        try:
            async with asyncio.timeout_at(deadline):
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
        return Opened(transport, extensions, opening.tls, opening.wire)


def _with_fault(result: Opened | OpenFailure, fault: TlsFault | None) -> Opened | OpenFailure:
    """Note with a session what its policy, which is only being tested, has against it."""
    if fault is not None and isinstance(result, Opened) and result.tls is not None:
        return replace(result, tls=replace(result.tls, fault=fault))
    return result


class _Opening:
    """The steps, and in which of them we are."""

    def __init__(self, client: aiosmtplib.SMTP, target: Target, context: ResumingContext) -> None:
        self._client = client
        self._target = target
        self._context = context
        self._name = (target.policy.names or (target.host,))[0]
        self._phase = Phase.CONNECT
        self._watch: Watch | None = None
        self.tls: TlsResult | None = None
        self.wire: Any = None

    async def run(self) -> OpenFailure | None:
        try:
            await self._client.connect()
            self._phase = Phase.GREETING
            watch = self._watched()
            self._phase = Phase.EHLO
            await self._hello(watch)
            if self._target.policy.check is not Check.PLAIN:
                self._phase = Phase.STARTTLS
                failure = await self._secure(watch)
                if failure is not None:
                    return failure
                self._phase = Phase.EHLO
                await self._hello(watch)
                self._keep_session()
                if self._target.policy.requires_tls and not self._client.supports_extension("requiretls"):
                    return self.failed(FailureReason.NO_REQUIRETLS)
            if self._target.username:
                self._phase = Phase.AUTH
                watch.expect_many()
                await self._client.login(self._target.username, self._target.password)
                watch.settled()
            watch.check()
        except Desynchronised as error:
            return self.failed(FailureReason.PROTOCOL, str(error))
        except aiosmtplib.SMTPConnectResponseError as error:
            self._phase = Phase.GREETING
            return self._refused(error.code, error.message)
        except aiosmtplib.SMTPConnectError as error:
            return self.failed(_connect_reason(error), str(error))
        except aiosmtplib.SMTPResponseException as error:
            if error.code < 200:
                return self.failed(FailureReason.PROTOCOL, error.message)
            return self._refused(error.code, error.message)
        except aiosmtplib.SMTPTimeoutError:
            return self.failed(FailureReason.TIMEOUT)
        except (aiosmtplib.SMTPServerDisconnected, OSError) as error:
            return self.failed(FailureReason.LOST, str(error))
        except aiosmtplib.SMTPException as error:
            reason = FailureReason.NO_AUTH if self._phase is Phase.AUTH else FailureReason.PROTOCOL
            return self.failed(reason, str(error))
        return None

    def _watched(self) -> Watch:
        """Stand between the transport and the client; what came behind the greeting is one reply too many."""
        transport, protocol = self._client.transport, self._client.protocol
        if transport is None or protocol is None:
            raise aiosmtplib.SMTPServerDisconnected("connection lost")
        if protocol._buffer:
            raise Desynchronised("the server says more than its greeting")
        self._watch = Watch(transport, protocol)
        return self._watch

    async def _hello(self, watch: Watch) -> None:
        """EHLO, or HELO if the host knows no better."""
        try:
            watch.expect()
            await self._client.ehlo()
        except aiosmtplib.SMTPHeloError:
            if not self._client.is_connected or self._target.policy.check is not Check.PLAIN:
                raise
            watch.expect()
            await self._client.helo()
        watch.check()

    async def _secure(self, watch: Watch) -> OpenFailure | None:
        """STARTTLS and the handshake. The context checks a name; here come the other checks."""
        if not self._client.supports_extension("starttls"):
            return self.failed(FailureReason.NO_TLS)
        try:
            found = await watch.start_tls(self._context, self._name)
        except Injected as error:
            return self.failed(FailureReason.INJECTED, str(error))
        except ssl.SSLCertVerificationError as error:
            return self.failed(FailureReason.UNTRUSTED, error.verify_message, fault_of(error))
        except OSError as error:  # also ssl.SSLError, and a connection that ends in the middle
            return self.failed(FailureReason.TLS_FAILED, getattr(error, "reason", None) or str(error))
        except ValueError as error:  # a name that has no form in TLS: the DNS allows any octets
            return self.failed(FailureReason.TLS_FAILED, f"host name: {error}")
        if isinstance(found, Reply):
            return self._declined(found)
        assert self._client.protocol is not None
        self.wire = self._client.transport
        self._client.transport = self._client.protocol.transport = found
        peer = found.get_extra_info("ssl_object")
        policy = self._target.policy
        verified = "name" if policy.check is Check.NAME else ""
        if policy.check is Check.DANE:
            names = policy.names or (self._target.host,)
            fault = check_chain(policy.records, _chain_of(peer), names, now=datetime.now(UTC))
            if fault is not None:
                return self.failed(FailureReason.UNTRUSTED, fault.text, fault.fault)
            verified = "dane"
        self.tls = TlsResult(peer.version(), peer.cipher()[0], verified, bool(peer.session_reused))
        return None

    def _keep_session(self) -> None:
        """By now the tickets of TLS 1.3 have come: they follow the handshake."""
        transport = self._client.transport
        peer = None if transport is None else transport.get_extra_info("ssl_object")
        if peer is not None:
            self._context.keep(self._name, peer.session)

    def failed(self, reason: FailureReason, detail: str = "", fault: Fault | None = None) -> OpenFailure:
        text = f"{_WORDS[self._phase]}: {reason}"
        if detail and reason not in (FailureReason.TIMEOUT, FailureReason.NO_TLS):
            text = f"{text} ({detail})"
        enhanced = _ENHANCED.get(reason, "4.4.2")
        tls_fault = None
        if self._phase is Phase.STARTTLS:
            enhanced = "4.7.10" if reason is FailureReason.NO_TLS else "4.7.5"
            tls_fault = TlsFault(fault or _FAULTS.get(reason, Fault.VALIDATION), text[:1024])
        return OpenFailure(self._phase, reason, Reply(0, enhanced, text[:1024]), tls_fault)

    def _refused(self, code: int, message: str) -> OpenFailure:
        reply = _reply_of(code, message)
        return OpenFailure(self._phase, reply, reply)

    def _declined(self, reply: Reply) -> OpenFailure:
        """The server offers STARTTLS and will not do it: about TLS, and never about the message."""
        text = f"STARTTLS: {FailureReason.NO_TLS} ({reply})"[:1024]
        fault = TlsFault(Fault.NO_STARTTLS, text)
        return OpenFailure(self._phase, FailureReason.NO_TLS, Reply(0, "4.7.10", text), fault)


# with the certificate authorities of the system
open_session = SessionOpener()


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
    FailureReason.NO_AUTH: "4.7.8",
    FailureReason.PROTOCOL: "4.5.0",
    FailureReason.NO_REQUIRETLS: "5.7.30",
}
_FAULTS = {FailureReason.NO_TLS: Fault.NO_STARTTLS, FailureReason.INJECTED: Fault.INJECTED}

_DER = 2  # _ssl.ENCODING_DER

# X509_V_ERR_* of OpenSSL: not yet valid, expired; self-signed, unknown issuer; host name, IP address
_FAULT_OF_CODE = {
    **dict.fromkeys((9, 10), Fault.EXPIRED),
    **dict.fromkeys((18, 19, 20, 21, 27, 28), Fault.NOT_TRUSTED),
    **dict.fromkeys((62, 64), Fault.HOST_MISMATCH),
}


def fault_of(error: ssl.SSLCertVerificationError) -> Fault:
    """The certificate error in the words of TLS-RPT."""
    return _FAULT_OF_CODE.get(error.verify_code, Fault.VALIDATION)


def _chain_of(peer: ssl.SSLObject) -> list[bytes]:
    """The certificates that the peer has sent, DER, its own first. Public in Python 3.13, there before."""
    if hasattr(peer, "get_unverified_chain"):
        return list(peer.get_unverified_chain())
    chain = peer._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return [certificate.public_bytes(_DER) for certificate in chain]


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
