"""One session of a lane: the owner of a transaction machine. Jobs become transactions, answers outcomes.

The machine asks `next_transaction` when it could begin one, behind the final dot of the one before where the
host allows that, and gives each back by `transaction_ended`. What an answer means is engine/smtp/policy.py's
matter; who is told is the lane's.

What the host has announced is kept to: SIZE (RFC 1870), 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531), DSN (RFC 3461), and
the limits of RFC 9422 on transactions, recipients and recipient domains of a session.
"""

from typing import Protocol

from engine.delivery.form import BOUNCED_HERE, WireMessage
from engine.delivery.job import Job
from engine.smtp.opener import Opened
from engine.smtp.policy import (
    BAD_ADDRESS,
    NEEDS_SMTPUTF8,
    TOO_LARGE,
    FailureReason,
    Phase,
    Verdict,
    classify,
)
from engine.values.options import MAX_ORCPT, Notify, Options, format_notify, xtext
from engine.values.reply import Reply
from native.mime import canonicalise
from native.transaction import DOT, QUITTED, RCPT, Transaction, TransactionMachine

MAX_RECIPIENTS = 1 << 30  # none announced; the profile has its own


class SessionLane(Protocol):
    """What a session needs of its lane."""

    def take(self, session: "Session") -> tuple[list[Job], WireMessage] | None: ...
    def is_over_limit(self) -> bool: ...
    def settle(
        self, job: Job, verdict: Verdict, reply: Reply, host: str, possible_duplicate: bool
    ) -> None: ...
    def delivered(
        self, job: Job, code: int, enhanced: str, text: str, host: str, is_relayed: bool
    ) -> None: ...
    def put_back(self, jobs: list[Job], *, tried: bool) -> None: ...
    def answered(self, job: Job) -> None: ...
    def limit_recipients(self, count: int) -> None: ...
    def ended(self, session: "Session", *, useful: bool) -> None: ...
    def now_ns(self) -> int: ...


class Session:
    """An open connection from one source to one host."""

    __slots__ = (
        "_domains",
        "_has_8bitmime",
        "_has_dsn",
        "_has_size",
        "_has_smtputf8",
        "_lane",
        "_max_domains",
        "_max_transactions",
        "_size_limit",
        "chunking",
        "completed",
        "host",
        "idle_since_ns",
        "limits_domains",
        "machine",
        "max_recipients",
    )

    def __init__(
        self,
        lane: SessionLane,
        *,
        host: str,
        opened: Opened,
        pipelining: bool,
        chunking: bool,
        max_transactions: int,
    ) -> None:
        extensions = opened.extensions
        self._lane = lane
        self.host = host
        self.chunking = chunking and "chunking" in extensions
        self._has_8bitmime = "8bitmime" in extensions
        self._has_smtputf8 = "smtputf8" in extensions and self._has_8bitmime
        self._has_dsn = "dsn" in extensions
        self._has_size = "size" in extensions
        size = extensions.get("size", "0").strip()
        self._size_limit = int(size) if size.isascii() and size.isdigit() else 0
        limits = announced_limits(extensions.get("limits", ""))
        self._max_transactions = min(max_transactions, limits.get("MAILMAX", max_transactions))
        self.max_recipients = limits.get("RCPTMAX", MAX_RECIPIENTS)
        self._max_domains = limits.get("RCPTDOMAINMAX", 0)
        self.limits_domains = self._max_domains > 0
        self._domains: set[str] = set()
        self.completed = 0
        self.idle_since_ns = lane.now_ns()
        self.machine = TransactionMachine(
            self, pipelining=pipelining and "pipelining" in extensions, chunking=self.chunking
        )

    # -- the machine asks

    def next_transaction(self, machine: TransactionMachine) -> Transaction | None:
        if machine.started >= self._max_transactions or self._lane.is_over_limit():
            machine.quit()
            return None
        while taken := self._lane.take(self):
            transaction = self._build(*taken)
            if transaction is not None:
                return transaction
        self.idle_since_ns = self._lane.now_ns()
        return None

    # -- the lane asks

    def can_send(self, message: WireMessage) -> bool:
        """Whether the host takes these octets; if not, the message's 7-bit form."""
        return message.is_ascii or (
            self._has_8bitmime and (self._has_smtputf8 or not message.has_utf8_header)
        )

    def is_open_to(self, domain: str) -> bool:
        """Whether a recipient of that domain may still come in this session."""
        if not self._max_domains or domain in self._domains:
            return True
        if len(self._domains) >= self._max_domains:
            return False
        self._domains.add(domain)
        return True

    # -- within

    def _build(self, jobs: list[Job], message: WireMessage) -> Transaction | None:
        """The transaction for jobs that share one message; None if they are settled without one."""
        size = len(message.data)
        if 0 < self._size_limit < size:
            self._refuse(jobs, TOO_LARGE)
            return None
        parameters = b"SIZE=%d" % size if self._has_size else b""  # without stuffing: RFC 1870 section 3
        if not message.is_ascii:
            parameters += b" BODY=8BITMIME"
        if jobs[0].requires_tls:
            parameters += b" REQUIRETLS"
        try:
            sender = jobs[0].record.sender.encode()
            recipients = [job.record.recipient.encode() for job in jobs]
        except UnicodeEncodeError:
            self._refuse(jobs, BAD_ADDRESS)
            return None
        is_plain = sender.isascii() and all(map(bytes.isascii, recipients))
        if not is_plain and not self._has_smtputf8:
            self._refuse(jobs, NEEDS_SMTPUTF8)
            return None
        if message.has_utf8_header or not is_plain:
            parameters += b" SMTPUTF8"
        recipient_parameters: list[bytes] = []
        if self._has_dsn and any(job.record.options is not None for job in jobs):
            parameters += _sender_wishes(jobs[0].record.options)
            recipient_parameters = [_recipient_wishes(job.record.options) for job in jobs]
        try:
            return Transaction(
                sender,
                recipients,
                canonicalise(message.data, not self.chunking),
                mail_parameters=parameters.lstrip(),
                recipient_parameters=recipient_parameters,
                jobs=jobs,
            )
        except ValueError:
            self._refuse(jobs, BAD_ADDRESS)
            return None

    def _refuse(self, jobs: list[Job], reply: Reply) -> None:
        for job in jobs:
            self._lane.settle(job, BOUNCED_HERE, reply, self.host, False)

    # -- the machine tells

    def transaction_ended(self, machine: TransactionMachine, transaction: Transaction) -> None:
        lane = self._lane
        jobs: list[Job] = transaction.jobs
        if transaction.unbegun:
            lane.put_back(jobs, tried=True)
            return
        self.completed += 1
        if len(jobs) == 1:  # the usual case, and the one that costs
            answer = transaction.answers[0]
            if answer is not None and answer[0] == DOT and 200 <= answer[1] < 300:
                lane.answered(jobs[0])
                lane.delivered(jobs[0], answer[1], answer[2], answer[3], self.host, self._is_relayed(jobs[0]))
                return
        last = transaction.answers[-1]
        if last is not None and last[1]:
            lane.answered(jobs[0])
        refused: list[Job] = []
        behind_data = sum(answer is not None and answer[0] != RCPT for answer in transaction.answers)
        for job, answer in zip(jobs, transaction.answers, strict=True):
            if answer is None:
                raise AssertionError(f"message {job.id:016x}: transaction ended without an answer")
            phase, code, enhanced, text = answer
            if phase == DOT and code // 100 == 2:
                lane.delivered(job, code, enhanced, text, self.host, self._is_relayed(job))
                continue
            reply = Reply(code, enhanced, text)
            verdict = classify(
                Phase(phase), reply if code else FailureReason(text), shared=behind_data > 1 and phase != RCPT
            )
            if verdict.split:
                refused.append(job)
            if not code:
                reply = Reply(0, "4.4.2", f"{Phase(phase).name}: {text}")
            if verdict.split and len(jobs) > 1:
                continue
            lane.settle(job, verdict, reply, self.host, transaction.possible_duplicate and code in (0, 421))
        if refused and len(jobs) > 1:
            self._split(jobs, refused, transaction)

    def _is_relayed(self, job: Job) -> bool:
        """The submitter has wishes, and the host was not asked to report a delivery: it cannot, or it was not to."""
        options = job.record.options
        return options is not None and not (self._has_dsn and options.notify & Notify.SUCCESS)

    def _split(self, jobs: list[Job], refused: list[Job], transaction: Transaction) -> None:
        """Too many recipients: those refused go again at once in a smaller transaction, if that can help."""
        accepted = sum(answer is not None and answer[0] == DOT for answer in transaction.answers)
        if accepted:
            self._lane.limit_recipients(accepted)
            self._lane.put_back(refused, tried=False)
            return
        for job, answer in zip(jobs, transaction.answers, strict=True):
            if job in refused and answer is not None:
                reply = Reply(*answer[1:])
                self._lane.settle(job, classify(Phase(answer[0]), reply), reply, self.host, False)

    def session_ended(
        self, machine: TransactionMachine, reason: str, code: int, enhanced: str, text: str
    ) -> None:
        self._lane.ended(self, useful=self.completed > 0 or reason == QUITTED)


def announced_limits(parameters: str) -> dict[str, int]:
    """LIMITS of an EHLO reply (RFC 9422 section 3): what is not understood is passed over."""
    limits = {}
    for entry in parameters.split():
        name, _, value = entry.partition("=")
        if name and value.isascii() and value.isdigit() and len(value) <= 6 and int(value) > 0:
            limits[name.upper()] = int(value)
    return limits


def _sender_wishes(options: Options | None) -> bytes:
    """Parameters of MAIL (RFC 3461 sections 4.3 and 4.4)."""
    if options is None:
        return b""
    ret = f" RET={options.ret}" if options.ret else ""
    envid = f" ENVID={xtext(options.envid)}" if options.envid else ""
    return f"{ret}{envid}".encode()


def _recipient_wishes(options: Options | None) -> bytes:
    """Parameters of RCPT (RFC 3461 sections 4.1 and 4.2)."""
    if options is None:
        return b""
    notify = f" NOTIFY={format_notify(options.notify)}" if options.notify else ""
    kind, _, address = options.orcpt.partition(";")
    encoded = f"{kind};{xtext(address)}"
    # longer ones make a line that a host need not take (RFC 3461 section 4.2)
    orcpt = f" ORCPT={encoded}" if options.orcpt and len(encoded) <= MAX_ORCPT else ""
    return f"{notify}{orcpt}".encode()
