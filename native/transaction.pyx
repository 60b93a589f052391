"""The SMTP client side of an open session, from MAIL to the final reply (RFC 5321, 2920, 3030).

`attach` takes over an open transport, after greeting, EHLO, STARTTLS and AUTH. From then on the machine asks
its owner for transactions and tells it what became of each. It reads no clock, opens nothing, retries nothing
and has no opinion about a reply: what an answer means is engine/smtp/policy.py's matter. It does no I/O but
transport.write, so a test drives it with a fake transport and plain bytes.

With PIPELINING, MAIL, all RCPT and DATA go in one write; after the 354 the body, the final dot and the next
transaction's commands go in one write, so a steady session costs one round trip per message. With CHUNKING a
whole transaction is one write. Without PIPELINING every command waits for its reply.

Promises:
- Each transaction taken from the owner comes back by `transaction_ended` exactly once, before
  `session_ended`, which comes exactly once.
- A recipient's answer is a reply that was awaited when it came. A reply to a dot that has not left us, a
  second reply, a reply to nothing, a malformed one: protocol error, the session ends, and nothing counts as
  delivered by it.
- A transaction begins only when nothing is unread: a reply that was not asked for ends the session before it
  could be taken for the answer to something else.
- A 421 ends the session, whatever it answers.
- `possible_duplicate` is set only if the whole message may have reached the peer and no reply to it came
  (RFC 1047).
- Only what the peer has answered nothing of, and whose body it does not have, is `unbegun`.
- A transaction that came to nothing is followed by RSET before the next one.

Deadlines: `tick` is called by one coarse timer for all sessions of a pool. A phase that shows no progress (a
reply, or bytes leaving the write buffer) from one tick to another for longer than its timeout ends the
session. So that a peer that makes a little progress now and then holds nobody for ever, a message must leave
at a least rate, and a whole transaction has a deadline too.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from native.replies cimport ReplyParser

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int descriptor, void *buffer, size_t size, int flags)
    int MSG_PEEK
    int MSG_DONTWAIT

cdef enum:
    STAGE_IDLE = 0
    STAGE_RSET = 1
    STAGE_MAIL = 2
    STAGE_RCPT = 3
    STAGE_DATA = 4
    STAGE_DOT = 5
    STAGE_QUIT = 6
    BLOCK = 7            # timeout slot of a body that is still leaving the write buffer
    WHOLE = 8            # and of a whole transaction
    TLS_RECORD = 64      # more than a TLS record adds to what it carries
    JOIN_LIMIT = 65536   # up to here one copy is cheaper than one more write

IDLE = STAGE_IDLE
RSET = STAGE_RSET
MAIL = STAGE_MAIL
RCPT = STAGE_RCPT
DATA = STAGE_DATA
DOT = STAGE_DOT
QUIT = STAGE_QUIT

QUITTED = "quit"
REFUSED = "refused"
LOST = "connection lost"
TIMEOUT = "timed out"
PROTOCOL = "protocol error"
ABORTED = "aborted"


cdef int _check_argument(bytes value) except -1:
    """No byte of an address or parameter may end a command line (C0 and DEL are refused)."""
    cdef const unsigned char *data = <const unsigned char *> PyBytes_AS_STRING(value)
    cdef Py_ssize_t i
    for i in range(PyBytes_GET_SIZE(value)):
        if data[i] < 32 or data[i] == 127:
            raise ValueError(f"control character in an SMTP argument: {value!r}")
    return 0


cdef class Transaction:
    """One message to one or more recipients of one destination.

    `recipient_parameters` is empty or has one entry per recipient: "" or parameters with a space before each.
    `body` must have been made by native.mime.canonicalise, stuffed exactly if the machine does not use BDAT.
    Raises ValueError for an argument with a control character.
    """

    def __init__(self, bytes sender not None, recipients, bytes body not None, *,
                 bytes mail_parameters=b"", recipient_parameters=(), object jobs=None):
        cdef bytes recipient
        cdef bytes parameters
        cdef list commands
        _check_argument(sender)
        if mail_parameters:
            _check_argument(mail_parameters)
            self.mail = b"MAIL FROM:<" + sender + b"> " + mail_parameters + b"\r\n"
        else:
            self.mail = b"MAIL FROM:<" + sender + b">\r\n"
        self.rcpts = []
        self.answers = []
        for recipient in recipients:
            _check_argument(recipient)
            self.rcpts.append(b"RCPT TO:<" + recipient + b">\r\n")
            self.answers.append(None)
        if not self.rcpts:
            raise ValueError("a transaction needs a recipient")
        if recipient_parameters:
            if len(recipient_parameters) != len(self.rcpts):
                raise ValueError(f"{len(recipient_parameters)} parameters for {len(self.rcpts)} recipients")
            commands = []
            for recipient, parameters in zip(self.rcpts, recipient_parameters):
                _check_argument(parameters)
                commands.append(recipient[:len(recipient) - 2] + parameters + b"\r\n")
            self.rcpts = commands
        self.body = body
        self.jobs = jobs


cdef class TransactionMachine:
    """See the module docstring. `owner` is an `Owner` of transaction.pyi."""

    def __init__(self, owner, *, bint pipelining, bint chunking):
        self.owner = owner
        self._replies = ReplyParser()
        self._pipelining = pipelining
        self._chunking = chunking
        self._descriptor = -1
        self._stage = STAGE_IDLE
        self._timed = -1

    # -- the owner's side

    @property
    def is_idle(self):
        """Open, with no transaction and no QUIT under way."""
        return self.transport is not None and self._current is None and not self._quit_sent

    @property
    def is_body_sent(self):
        """Whether a reply to a complete message is awaited: such a session must not be killed."""
        return self._current is not None and self._body_sent and self._unsent() <= self._tail

    @property
    def phase(self):
        return self._stage

    @property
    def transactions(self):
        """Those under way: at most two."""
        return [t for t in (self._current, self._following) if t is not None]

    def attach(self, transport, wire=None):
        """Take the transport over and ask for work. `wire`: what a TLS transport writes to."""
        self.transport = transport
        self._wire = wire
        if transport.get_extra_info("sslcontext") is None:
            socket = transport.get_extra_info("socket")
            if socket is not None:
                self._descriptor = socket.fileno()
        transport.set_protocol(self)
        self.kick()

    def kick(self):
        """There may be a transaction to take now."""
        if self._busy or self.transport is None:
            return
        self._busy = True
        try:
            self._advance()
        finally:
            self._busy = False

    def quit(self):
        """End the session politely, after what is under way."""
        self._want_quit = True
        self.kick()

    def abort(self):
        """End the session at once."""
        self._end(ABORTED, 0, True)

    def tick(self, long long now_ns, tuple timeouts_ns not None, long long least_rate=0):
        """`timeouts_ns`: by phase (0 unused, RSET, MAIL, RCPT, DATA, DOT, QUIT), at 7 the body block, at 8 a
        whole transaction. `least_rate`: bytes per second at which a message must leave, behind the time of
        one block; 0: none.
        """
        cdef Py_ssize_t buffered
        cdef long long limit
        if self.transport is None or (self._current is None and not self._quit_sent):
            return
        buffered = self._unsent()
        if self._current is not None and self._is_overdue(now_ns, buffered, timeouts_ns, least_rate):
            self._end(TIMEOUT, 0, True)
            return
        if self._serial != self._seen_serial or buffered != self._seen_buffered:
            self._seen_serial = self._serial
            self._seen_buffered = buffered
            self._seen_ns = now_ns
            return
        limit = timeouts_ns[BLOCK if buffered and self._stage == STAGE_DOT else self._stage]
        if now_ns - self._seen_ns >= limit:
            self._end(TIMEOUT, 0, True)

    cdef bint _is_overdue(
        self, long long now_ns, Py_ssize_t buffered, tuple timeouts_ns, long long least_rate
    ) except -1:
        """Whether the current transaction has had its time, whatever progress it makes."""
        if self._timed != self._finished:
            self._timed = self._finished
            self._begun_ns = now_ns
            self._leaving_ns = 0
        if now_ns - self._begun_ns >= <long long> timeouts_ns[WHOLE]:
            return True
        if buffered <= self._tail:
            self._leaving_ns = 0
        elif self._leaving_ns == 0:
            self._leaving_ns = now_ns
            self._leaving = buffered
        elif least_rate > 0:
            return now_ns - self._leaving_ns >= (
                <long long> timeouts_ns[BLOCK] + <long long> self._leaving * 1000000000 // least_rate
            )
        return False

    # -- asyncio.Protocol

    def connection_made(self, transport):
        """Called by nobody: the transport is taken over open, by attach()."""

    def data_received(self, bytes data not None):
        cdef int code
        if self.transport is None:
            return
        self._replies.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self._busy = True
        try:
            while self.transport is not None:
                code = self._replies.next_code()
                if code == 0:
                    break
                self._serial += 1
                if code < 0:
                    self._end(PROTOCOL, 0, True)
                    break
                self._handle(code)
        finally:
            self._busy = False

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        if self._quit_sent and self._current is None:
            self._end(QUITTED, 0, False)
        else:
            self._end(LOST, 0, False)

    def pause_writing(self):
        """At most one body is in the buffer: there is nothing to hold back."""

    def resume_writing(self):
        pass

    # -- the machine

    cdef int _handle(self, int code) except -1:
        """One reply. Only classes 2 to 5 come here."""
        cdef int kind = code // 100
        cdef int stage = self._stage
        if code == 421:
            return self._end(QUITTED if self._quit_sent and self._current is None else REFUSED, code, True)
        if self._current is None:
            # a reply to QUIT, or to nothing
            return self._end(QUITTED if self._quit_sent else PROTOCOL, 0, not self._quit_sent)
        if kind == 3 and (stage != STAGE_DATA or code != 354):
            return self._end(PROTOCOL, 0, True)
        if not self._pipelining and stage < STAGE_DATA and self._has_early_input():
            return self._end(PROTOCOL, 0, True)
        if stage == STAGE_RSET:
            if kind != 2:
                return self._end(PROTOCOL, 0, True)
            self._stage = STAGE_MAIL
            if not self._pipelining:
                self.transport.write(self._current.mail)
            return 0
        self._answered = True
        if stage == STAGE_MAIL:
            self._mail_accepted = kind == 2
            if not self._mail_accepted:
                self._fill(STAGE_MAIL, code)
            self._stage = STAGE_RCPT
            if not self._pipelining:
                if not self._mail_accepted:
                    self._needs_reset = True
                    return self._finish()
                self.transport.write(self._current.rcpts[0])
            return 0
        if stage == STAGE_RCPT:
            if self._mail_accepted:
                if kind == 2:
                    self._accepted += 1
                else:
                    self._current.answers[self._recipient] = (STAGE_RCPT, code, *self._replies.last())
            self._recipient += 1
            if self._recipient < len(self._current.rcpts):
                if not self._pipelining:
                    self.transport.write(self._current.rcpts[self._recipient])
                return 0
            if self._pipelining:
                self._stage = STAGE_DOT if self._chunking else STAGE_DATA
                return 0
            if not self._accepted:
                self._needs_reset = True
                return self._finish()
            if self._chunking:
                self._stage = STAGE_DOT
                self._body_sent = True
                self.transport.write(b"BDAT %d LAST\r\n" % len(self._current.body))
                self.transport.write(self._current.body)
            else:
                self._stage = STAGE_DATA
                self.transport.write(b"DATA\r\n")
            return 0
        if stage == STAGE_DATA:
            if kind == 3:
                return self._send_body()
            if kind == 2:
                return self._end(PROTOCOL, 0, True)
            self._fill(STAGE_DATA, code)
            self._needs_reset = True
            return self._finish()
        # the reply to the final dot, or to BDAT
        if self._unsent() > self._tail:
            # it came before the message had left us: a refusal we believe, an acceptance we do not
            if kind == 2:
                return self._end(PROTOCOL, 0, True)
            self._fill(STAGE_DOT, code)
            return self._end(PROTOCOL, 0, True)
        if self._chunking and self._pipelining and self._has_early_input():
            # one reply too many to a transaction that went out in one write: which one it is, nothing tells
            return self._end(PROTOCOL, 0, True)
        self._fill(STAGE_DOT, code)  # whoever was refused at RCPT keeps that answer
        self._needs_reset = self._chunking and kind != 2
        return self._finish()

    cdef int _fill(self, int phase, int code) except -1:
        """Give every recipient without an answer this one."""
        cdef list answers = self._current.answers
        cdef tuple answer = None
        cdef Py_ssize_t i
        for i in range(len(answers)):
            if answers[i] is None:
                if answer is None:
                    answer = (phase, code, *self._replies.last())
                answers[i] = answer
        return 0

    cdef int _send_body(self) except -1:
        """354: the body, the dot and the next transaction's commands in one write."""
        cdef bytes body = b"" if not self._accepted else self._current.body
        cdef bytes commands = b""
        if self._has_early_input():
            return self._end(PROTOCOL, 0, True)
        self._lone_dot = not self._accepted
        self._body_sent = not self._lone_dot
        self._stage = STAGE_DOT
        if self._pipelining and not self._want_quit:
            self._following = self.owner.next_transaction(self)
            if self._following is not None:
                self.started += 1
                commands = self._commands(self._following)
        self._tail = len(commands)
        if self._wire is not None:  # encrypted, and in records of at most 16 KiB
            self._tail += TLS_RECORD * (2 + self._tail // 16384)
        if len(body) <= JOIN_LIMIT:
            self.transport.write(b"".join((body, b".\r\n", commands)))
        else:
            self.transport.write(body)
            self.transport.write(b".\r\n" + commands)
        return 0

    def _commands(self, Transaction transaction not None):
        if len(transaction.rcpts) == 1:
            return b"".join((transaction.mail, <bytes> transaction.rcpts[0], b"DATA\r\n"))
        return b"".join((transaction.mail, *transaction.rcpts, b"DATA\r\n"))

    cdef Py_ssize_t _unsent(self) except -1:
        """Bytes that have been written and have not left this process."""
        cdef Py_ssize_t size = self.transport.get_write_buffer_size()
        if self._wire is not None:
            size += self._wire.get_write_buffer_size()
        return size

    cdef bint _has_early_input(self) noexcept:
        """Whether the peer has said more than it was asked: no answer to what it has not got."""
        cdef char byte
        if self._replies.has_input():
            return True
        return self._descriptor >= 0 and recv(self._descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0

    cdef int _finish(self) except -1:
        """The current transaction is answered; the following one, if any, becomes current."""
        cdef Transaction done = self._current
        self._finished += 1
        self._current = self._following
        self._following = None
        self._start_stage()
        self.owner.transaction_ended(self, done)
        if self._current is None:
            return self._advance()
        return 0

    def _start_stage(self):
        self._recipient = 0
        self._accepted = 0
        self._mail_accepted = False
        self._answered = False
        self._body_sent = False
        self._lone_dot = False
        self._tail = 0
        self._stage = STAGE_IDLE if self._current is None else STAGE_MAIL

    cdef int _advance(self) except -1:
        """Idle: begin the next transaction, or QUIT."""
        cdef Transaction transaction
        if self.transport is None or self._current is not None or self._quit_sent:
            return 0
        if not self._want_quit:
            if self._has_early_input():
                return self._end(PROTOCOL, 0, True)
            transaction = self.owner.next_transaction(self)
            if transaction is not None:
                self.started += 1
                return self._begin(transaction)
        if self._want_quit and self.transport is not None:
            self._quit_sent = True
            self._stage = STAGE_QUIT
            self._serial += 1
            self.transport.write(b"QUIT\r\n")
        return 0

    cdef int _begin(self, Transaction transaction) except -1:
        cdef list parts = []
        self._current = transaction
        self._start_stage()
        self._serial += 1
        if self._needs_reset:
            self._needs_reset = False
            self._stage = STAGE_RSET
            parts.append(b"RSET\r\n")
        if not self._pipelining:
            self.transport.write(parts[0] if parts else transaction.mail)
            return 0
        if not self._chunking:
            parts.append(self._commands(transaction))
            self.transport.write(b"".join(parts))
            return 0
        parts.append(transaction.mail)
        parts.extend(transaction.rcpts)
        parts.append(b"BDAT %d LAST\r\n" % len(transaction.body))
        self._body_sent = True
        if len(transaction.body) <= JOIN_LIMIT:
            parts.append(transaction.body)
            self.transport.write(b"".join(parts))
        else:
            self.transport.write(b"".join(parts))
            self.transport.write(transaction.body)
        return 0

    cdef int _end(self, str reason, int code, bint abort) except -1:
        """End the session once: answer what is under way, close the transport, tell the owner."""
        cdef Transaction current = self._current
        cdef Transaction following = self._following
        cdef object transport = self.transport
        cdef tuple words
        cdef tuple answer
        cdef Py_ssize_t i
        cdef bint silent
        cdef bint partly
        if transport is None:
            return 0
        # given up with the final dot still here: nobody can have the whole message
        partly = (reason is TIMEOUT or reason is ABORTED) and self._unsent() > self._tail
        words = self._replies.last() if code else ("", reason)
        self.transport = None
        self._wire = None
        self._descriptor = -1
        self._current = None
        self._following = None
        if abort:
            transport.abort()
        else:
            transport.close()
        if current is not None:
            silent = not self._answered and not self._body_sent and code == 0
            if silent and (reason is LOST or reason is ABORTED):
                current.unbegun = True
            else:
                answer = (self._stage, code, *words)
                for i in range(len(current.answers)):
                    if current.answers[i] is None:
                        current.answers[i] = answer
                        # a 421 before its turn does not say that what we sent behind it was thrown away
                        if self._body_sent and not partly and (code == 0 or self._stage != STAGE_DOT):
                            current.possible_duplicate = True
            self.owner.transaction_ended(self, current)
        if following is not None:
            following.unbegun = True
            self.owner.transaction_ended(self, following)
        self.owner.session_ended(self, reason, code, words[0], words[1])
        return 0
