"""One session of a lane: the owner of a transaction machine. Jobs become transactions, answers outcomes.

The machine asks `next_transaction` when it could begin one, behind the final dot of the one before where the
host allows that, and gives each back by `transaction_ended`. What an answer means is engine/smtp/policy.py's
matter; who is told is the lane's.
"""

from typing import Protocol

from engine.delivery.job import Job
from engine.smtp.opener import Opened
from engine.smtp.policy import (
    BAD_ADDRESS,
    NEEDS_8BITMIME,
    NEEDS_SMTPUTF8,
    TOO_LARGE,
    FailureReason,
    Phase,
    Verdict,
    classify,
)
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from native.mime import canonicalise
from native.transaction import DOT, QUITTED, Transaction, TransactionMachine

_REFUSED_HERE = Verdict(OutcomeKind.BOUNCED, Scope.MESSAGE)


class SessionLane(Protocol):
    """What a session needs of its lane."""

    def take(self, session: "Session") -> list[Job]: ...
    def message_of(self, job: Job) -> bytes | None: ...
    def settle(
        self, job: Job, verdict: Verdict, reply: Reply, host: str, possible_duplicate: bool
    ) -> None: ...
    def delivered(self, job: Job, code: int, enhanced: str, text: str, host: str) -> None: ...
    def put_back(self, jobs: list[Job], *, tried: bool) -> None: ...
    def limit_recipients(self, count: int) -> None: ...
    def ended(self, session: "Session", *, useful: bool) -> None: ...
    def now_ns(self) -> int: ...
    def is_over_limit(self) -> bool: ...


class Session:
    """An open connection from one source to one host."""

    __slots__ = (
        "_extensions",
        "_has_size",
        "_lane",
        "_max_transactions",
        "_size_limit",
        "chunking",
        "completed",
        "host",
        "idle_since_ns",
        "machine",
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
        self._extensions = extensions
        self._has_size = "size" in extensions
        size = extensions.get("size", "0").strip()
        self._size_limit = int(size) if size.isascii() and size.isdigit() else 0
        self._max_transactions = max_transactions
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
        while jobs := self._lane.take(self):
            transaction = self._build(jobs)
            if transaction is not None:
                return transaction
        self.idle_since_ns = self._lane.now_ns()
        return None

    def _build(self, jobs: list[Job]) -> Transaction | None:
        """The transaction for jobs that share one message; None if they are settled without one."""
        message = self._lane.message_of(jobs[0])
        if message is None:
            for job in jobs[1:]:
                self._lane.put_back([job], tried=False)
            return None
        body = canonicalise(message, not self.chunking)
        parameters = b""
        if self._has_size:
            parameters = b"SIZE=%d" % len(body)
            if 0 < self._size_limit < len(body):
                self._refuse(jobs, TOO_LARGE)
                return None
        if not body.isascii():
            if "8bitmime" not in self._extensions:
                self._refuse(jobs, NEEDS_8BITMIME)
                return None
            parameters += b" BODY=8BITMIME"
        try:
            sender = jobs[0].record.sender.encode()
            recipients = [job.record.recipient.encode() for job in jobs]
        except UnicodeEncodeError:
            self._refuse(jobs, BAD_ADDRESS)
            return None
        if not (sender.isascii() and all(map(bytes.isascii, recipients))):
            if "smtputf8" not in self._extensions:
                self._refuse(jobs, NEEDS_SMTPUTF8)
                return None
            parameters += b" SMTPUTF8"
        try:
            return Transaction(sender, recipients, body, mail_parameters=parameters.lstrip(), jobs=jobs)
        except ValueError:
            self._refuse(jobs, BAD_ADDRESS)
            return None

    def _refuse(self, jobs: list[Job], reply: Reply) -> None:
        for job in jobs:
            self._lane.settle(job, _REFUSED_HERE, reply, self.host, False)

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
                lane.delivered(jobs[0], answer[1], answer[2], answer[3], self.host)
                return
        refused: list[Job] = []
        for job, answer in zip(jobs, transaction.answers, strict=True):
            if answer is None:
                raise AssertionError(f"message {job.id:016x}: transaction ended without an answer")
            phase, code, enhanced, text = answer
            if phase == DOT and code // 100 == 2:
                lane.delivered(job, code, enhanced, text, self.host)
                continue
            reply = Reply(code, enhanced, text)
            verdict = classify(Phase(phase), reply if code else FailureReason(text))
            if verdict.split:
                refused.append(job)
            if not code:
                reply = Reply(0, "4.4.2", f"{Phase(phase).name}: {text}")
            if verdict.split and len(jobs) > 1:
                continue
            lane.settle(job, verdict, reply, self.host, transaction.possible_duplicate and code in (0, 421))
        if refused and len(jobs) > 1:
            self._split(jobs, refused, transaction)

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
