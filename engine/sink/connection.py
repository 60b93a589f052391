"""One SMTP connection of the sink: bytes in, replies and log records out.

Speaks RFC 5321 with PIPELINING (2920), CHUNKING (3030), 8BITMIME (6152), SMTPUTF8 (6531), SIZE (1870),
STARTTLS (3207) and enhanced status codes, as far as the personality offers them. A client that pipelines
where it was not offered, or sends a bare LF, is told so and refused: the sink is strict in order to show
the mistakes of senders.

Invariants: replies leave in the order of their commands, and only after the journal has written what
they acknowledge (`release`). Buffers are bounded: a command line by 4 KiB (with SMTPUTF8 addresses and
parameters), a message by the personality's size; beyond that input is refused or skipped, not kept.
"""

import asyncio
import ssl
import time
from typing import Literal, cast

from engine.sink.journal import Journal
from engine.sink.personality import DelayStage, DropStage, Personality
from engine.sink.state import ProviderState
from engine.sink.syntax import ehlo_reply, message_id, parse_mail, parse_rcpt

MAX_LINE = 4096
READ_AHEAD = 1 << 20

Mode = Literal["command", "data", "chunk"]


class SinkConnection(asyncio.Protocol):
    """A client's connection to one personality."""

    __slots__ = (
        "_body_8bit",
        "_buffer",
        "_chunk_last",
        "_chunk_left",
        "_client",
        "_closing",
        "_context",
        "_greeted",
        "_held",
        "_idle",
        "_journal",
        "_loop",
        "_message",
        "_messages",
        "_mode",
        "_name",
        "_overflow",
        "_paused",
        "_personality",
        "_recipients",
        "_replies",
        "_sender",
        "_session",
        "_state",
        "_tls",
        "_transport",
        "_utf8",
        "_waiting",
    )

    def __init__(
        self,
        *,
        name: str,
        personality: Personality,
        state: ProviderState,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
        session: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._name = name
        self._personality = personality
        self._state = state
        self._journal = journal
        self._loop = loop
        self._session = session
        self._context = tls
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._buffer = bytearray()
        self._replies: list[bytes] = []
        self._waiting = False
        self._held: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._paused = False
        self._closing = False
        self._tls = False
        self._greeted = False
        self._messages = 0
        self._reset()

    def _reset(self) -> None:
        self._mode: Mode = "command"
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._utf8 = False
        self._body_8bit = False
        self._message = bytearray()
        self._overflow = False
        self._chunk_left = 0
        self._chunk_last = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._tls:
            return
        self._client = str(transport.get_extra_info("peername")[0])
        self._record("o")
        admitted = self._state.connect(self._client)
        self._idle = self._loop.call_later(self._personality.idle, self._give_up)
        limit = self._personality.connections
        if not admitted and limit is not None:
            self._refuse("connect", limit.reply)
            self._close()
            return
        self._answer(f"220 {self._personality.hostname} ESMTP sendfleet sink", "greeting")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._closing = True
        for timer in (self._held, self._idle):
            if timer is not None:
                timer.cancel()
        self._state.disconnect(self._client)
        self._record("e")

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        if self._held is None:
            self._run()
        elif len(self._buffer) > READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    # -- journal.Waiting

    def release(self) -> None:
        self._waiting = False
        if self._transport is None:
            return
        if self._replies:
            self._transport.write(b"".join(self._replies))
            self._replies.clear()
        if self._closing and self._held is None:
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        self._replies.clear()
        if self._transport is not None:
            self._transport.abort()

    # -- replies

    def _answer(self, text: str, stage: DelayStage | None = None, late_s: float = 0.0) -> None:
        """Queue a reply; at a stage that the personality delays, nothing more is read until it is due."""
        delay_s = late_s + (self._personality.delay.get(stage, 0.0) if stage is not None else 0.0)
        if delay_s:
            self._held = self._loop.call_later(delay_s, self._resume, text)
            return
        self._replies.append(text.encode() + b"\r\n")
        self._wait()

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._journal.wait(self)

    def _resume(self, text: str) -> None:
        self._held = None
        self._replies.append(text.encode() + b"\r\n")
        self._wait()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if not self._closing:
            self._run()

    def _refuse(self, stage: str, reply: str, recipient: str = "", late_s: float = 0.0) -> None:
        self._record("x", at=stage, code=int(reply[:3]), r=recipient)
        self._answer(reply, late_s=late_s)
        if reply.startswith("421"):
            self._close()

    def _close(self) -> None:
        """Close after the replies that are queued."""
        self._closing = True
        self._buffer.clear()
        self._wait()

    def _drop(self, stage: DropStage, recipient: str) -> None:
        """Cut without a reply to the command at hand; what was answered before still goes out."""
        self._record("d", at=stage, r=recipient)
        self._close()

    def _give_up(self) -> None:
        """Nothing was completed for the idle time."""
        if not self._closing:
            self._answer(f"421 4.4.2 {self._personality.hostname} Error: timeout exceeded")
            self._close()

    def _record(self, kind: str, **fields: object) -> None:
        now_ns = time.monotonic_ns()
        self._journal.record(
            {
                "k": kind,
                "t": time.time_ns() // 1_000_000,
                "n": now_ns,
                "p": self._name,
                "c": self._client,
                "s": self._session,
                **fields,
            }
        )

    # -- input

    def _run(self) -> None:
        """Consume the buffer until it needs more input, a delay holds it, or the connection closes."""
        while self._buffer and not self._closing and self._held is None:
            if self._mode == "command":
                if not self._take_line():
                    return
            elif self._mode == "data":
                if not self._take_data():
                    return
            else:
                self._take_chunk()

    def _take_line(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0 or end > MAX_LINE:
            if len(self._buffer) > MAX_LINE:
                self._refuse("command", "500 5.5.2 Line too long")
                self._close()
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if line.endswith(b"\r"):
            line = line[:-1]
        else:
            self._refuse("command", "500 5.5.2 Bare LF is not the end of a line")
            return True
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        if self._buffer and verb != b"BDAT" and not self._personality.pipelining:
            self._refuse("command", "503 5.5.0 Improper use of SMTP command pipelining")
            self._close()
            return False
        handler = _COMMANDS.get(verb)
        if handler is None:
            self._answer("500 5.5.2 Command not recognised")
        else:
            handler(self, argument)
        return True

    def _hello(self, argument: bytes) -> None:
        if not argument.strip():
            self._answer("501 5.5.4 Give a host name")
            return
        self._reset()
        self._greeted = True
        self._answer(f"250 {self._personality.hostname}", "ehlo")

    def _extended_hello(self, argument: bytes) -> None:
        if not argument.strip():
            self._answer("501 5.5.4 Give a host name")
            return
        self._reset()
        self._greeted = True
        has_tls = self._context is not None and not self._tls
        self._answer(ehlo_reply(self._personality, starttls=has_tls), "ehlo")

    def _start_tls(self, argument: bytes) -> None:
        if self._context is None or self._tls:
            self._answer("502 5.5.1 STARTTLS is not offered")
            return
        if self._buffer:
            # RFC 3207 section 4: what was pipelined in plaintext behind STARTTLS must not be obeyed.
            self._refuse("starttls", "503 5.5.1 Nothing may follow STARTTLS")
            self._close()
            return
        if self._transport is not None:
            # a fast client's first TLS record must not be read as a command before the upgrade has begun
            self._transport.pause_reading()
        self._answer("220 2.0.0 Ready to start TLS")
        self._tls = True
        self._greeted = False
        self._reset()
        self._loop.call_soon(self._begin_upgrade)

    def _begin_upgrade(self) -> None:
        self._journal.flush()
        task = self._loop.create_task(self._upgrade())
        _UPGRADES.add(task)
        task.add_done_callback(_UPGRADES.discard)

    async def _upgrade(self) -> None:
        transport = self._transport
        if transport is None or self._context is None:
            return
        try:
            upgraded = await self._loop.start_tls(transport, self, self._context, server_side=True)
        except (OSError, ssl.SSLError):
            self.connection_lost(None)
            transport.abort()
            return
        self._transport = upgraded

    def _mail(self, argument: bytes) -> None:
        if not self._greeted or self._sender is not None:
            self._answer("503 5.5.1 Bad sequence of commands")
            return
        offer = self._personality
        if offer.tls is not None and offer.tls.required and not self._tls:
            self._refuse("mail", "530 5.7.0 Must issue a STARTTLS command first")
            return
        mail = parse_mail(argument, offer)
        if isinstance(mail, str):
            self._refuse("mail", mail)
            return
        limit = offer.messages_per_connection
        if limit is not None and limit.reply is not None and self._messages >= limit.limit:
            self._refuse("mail", limit.reply)
            self._close()
            return
        if offer.block is not None and self._state.is_blocked(self._client, time.monotonic_ns()):
            self._refuse("mail", offer.block.reply)
            return
        if not self._state.charge(self._client, time.monotonic_ns()):
            assert offer.rate is not None
            self._refuse("mail", offer.rate.reply)
            return
        self._sender, self._utf8, self._body_8bit = mail.sender, mail.utf8, mail.body_8bit
        self._answer("250 2.1.0 OK", "mail")

    def _rcpt(self, argument: bytes) -> None:
        if self._sender is None:
            self._answer("503 5.5.1 Need MAIL before RCPT")
            return
        recipient, problem = parse_rcpt(argument, utf8=self._utf8)
        if problem:
            self._refuse("rcpt", problem)
            return
        offer = self._personality
        if len(self._recipients) >= offer.max_recipients:
            self._refuse("rcpt", "452 4.5.3 Too many recipients", recipient)
            return
        if offer.unknown is not None and self._state.is_unknown(recipient):
            self._refuse("rcpt", offer.unknown.reply, recipient)
            return
        greylist = offer.greylist
        if greylist is not None and self._state.is_greylisted(
            self._client, self._sender, recipient, time.monotonic_ns()
        ):
            self._refuse("rcpt", greylist.reply, recipient)
            return
        if offer.drop is not None and self._is_dropped("rcpt", recipient):
            return
        self._recipients.append(recipient)
        self._answer("250 2.1.5 OK", "rcpt")

    def _is_dropped(self, stage: DropStage, recipient: str) -> bool:
        drop = self._personality.drop
        if drop is None or drop.at != stage or not self._state.is_dropped(recipient):
            return False
        self._drop(stage, recipient)
        return True

    def _data(self, argument: bytes) -> None:
        if not self._recipients:
            self._answer(
                "503 5.5.1 Need RCPT before DATA" if self._sender is None else "554 5.5.1 No valid recipients"
            )
            return
        if self._is_dropped("data", self._recipients[0]):
            return
        self._mode = "data"
        # The end of the command line counts for a final dot that comes first (RFC 5321 section 4.1.1.4).
        self._message += b"\r\n"
        self._answer("354 End data with <CR><LF>.<CR><LF>", "data")

    def _take_data(self) -> bool:
        """Read a DATA body up to its final dot; False when it has not come yet."""
        before = max(0, len(self._message) - 4)
        self._message += self._buffer
        end = self._message.find(b"\r\n.\r\n", before)
        if self._is_cut_in_body():
            return False
        if end < 0:
            self._buffer.clear()
            if len(self._message) > self._personality.size + MAX_LINE:
                self._overflow = True
                del self._message[:-4]
            return False
        self._buffer = self._message[end + 5 :]
        del self._message[end + 2 :]
        del self._message[:2]
        self._finish()
        return True

    def _is_cut_in_body(self) -> bool:
        drop = self._personality.drop
        return drop is not None and drop.at == "body" and self._is_dropped("body", self._recipients[0])

    def _chunk(self, argument: bytes) -> None:
        size, _, last = argument.partition(b" ")
        if (
            not self._personality.chunking
            or not size.isdigit()
            or len(size) > 12
            or last.upper() not in (b"", b"LAST")
        ):
            # How many octets follow is unknown: going on would read the body as commands.
            self._refuse("data", "501 5.5.4 Syntax: BDAT size [LAST]")
            self._close()
            return
        self._mode = "chunk"
        self._chunk_left = int(size)
        self._chunk_last = bool(last)
        if not self._chunk_left:
            self._end_chunk()

    def _take_chunk(self) -> None:
        part = self._buffer[: self._chunk_left]
        del self._buffer[: len(part)]
        self._chunk_left -= len(part)
        if len(self._message) + len(part) > self._personality.size:
            self._overflow = True
        if self._recipients and not self._overflow:
            self._message += part
            if self._is_cut_in_body():
                return
        if not self._chunk_left:
            self._end_chunk()

    def _end_chunk(self) -> None:
        self._mode = "command"
        if not self._recipients:
            self._answer(
                "503 5.5.1 Need RCPT before BDAT" if self._sender is None else "554 5.5.1 No valid recipients"
            )
            if self._chunk_last:
                self._reset()
        elif self._chunk_last:
            self._finish()
        else:
            self._answer("250 2.0.0 Chunk received")

    def _finish(self) -> None:
        """The message is complete: judge it, log it, answer."""
        body, recipients = self._message, self._recipients
        crowded = self._personality.crowded
        if crowded is not None and not self._state.is_crowded(self._client):
            crowded = None
        if self._overflow or len(body) > self._personality.size:
            self._refuse("final", "552 5.3.4 Message size exceeds the limit", recipients[0])
        elif body.count(b"\n") != body.count(b"\r\n"):
            self._refuse("final", "550 5.6.11 Bare LF in the message is not allowed", recipients[0])
        elif not self._body_8bit and not self._utf8 and not body.isascii():
            self._refuse("final", "554 5.6.1 8-bit message without BODY=8BITMIME", recipients[0])
        elif crowded is not None and crowded.reply is not None:
            self._refuse("final", crowded.reply, recipients[0], crowded.delay)
        else:
            self._record("a", id=message_id(body), r=recipients, z=len(body))
            self._messages += 1
            if self._idle is not None:
                self._idle.cancel()
                self._idle = self._loop.call_later(self._personality.idle, self._give_up)
            if self._is_dropped("accepted", recipients[0]):
                return
            late_s = crowded.delay if crowded is not None else 0.0
            self._answer(f"250 2.0.0 OK {self._session:x}.{self._messages:x}", "final", late_s)
            limit = self._personality.messages_per_connection
            if limit is not None and limit.reply is None and self._messages >= limit.limit:
                self._close()
                return
        self._reset()

    def _forget(self, argument: bytes) -> None:
        self._reset()
        self._answer("250 2.0.0 OK")

    def _noop(self, argument: bytes) -> None:
        self._answer("250 2.0.0 OK")

    def _verify(self, argument: bytes) -> None:
        self._answer("252 2.1.5 Cannot verify, but will take the message")

    def _quit(self, argument: bytes) -> None:
        self._answer("221 2.0.0 Bye")
        self._close()


_UPGRADES: set[asyncio.Task[None]] = set()

_COMMANDS = {
    b"EHLO": SinkConnection._extended_hello,
    b"HELO": SinkConnection._hello,
    b"STARTTLS": SinkConnection._start_tls,
    b"MAIL": SinkConnection._mail,
    b"RCPT": SinkConnection._rcpt,
    b"DATA": SinkConnection._data,
    b"BDAT": SinkConnection._chunk,
    b"RSET": SinkConnection._forget,
    b"NOOP": SinkConnection._noop,
    b"VRFY": SinkConnection._verify,
    b"QUIT": SinkConnection._quit,
}
