"""The transaction machine on plain bytes: what it writes, when, and what it believes."""

from collections.abc import Iterable
from typing import Any

import pytest

from native.transaction import (
    ABORTED,
    DATA,
    DOT,
    LOST,
    MAIL,
    PROTOCOL,
    QUITTED,
    RCPT,
    REFUSED,
    TIMEOUT,
    Transaction,
    TransactionMachine,
)

TIMEOUTS_NS = (0, 10, 10, 10, 10, 100, 5, 50, 10_000)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.buffered = 0
        self.closed = ""

    def get_extra_info(self, name: str) -> None:
        return None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def close(self) -> None:
        self.closed = "closed"

    def abort(self) -> None:
        self.closed = "aborted"

    def taken(self) -> bytes:
        data = b"".join(self.written)
        self.written.clear()
        return data


class Owner:
    """Hands out a list of transactions and keeps what comes back."""

    def __init__(self, transactions: Iterable[Transaction]) -> None:
        self.waiting = list(transactions)
        self.done: list[Transaction] = []
        self.end: tuple[str, int, str, str] | None = None

    def next_transaction(self, machine: TransactionMachine) -> Transaction | None:
        return self.waiting.pop(0) if self.waiting else None

    def transaction_ended(self, machine: TransactionMachine, transaction: Transaction) -> None:
        assert self.end is None
        self.done.append(transaction)

    def session_ended(
        self, machine: TransactionMachine, reason: str, code: int, enhanced: str, text: str
    ) -> None:
        assert self.end is None
        self.end = (reason, code, enhanced, text)


def txn(name: str = "a", recipients: int = 1) -> Transaction:
    return Transaction(
        b"s@example.com",
        [f"{name}{i}@example.net".encode() for i in range(recipients)],
        b"body " + name.encode() + b"\r\n",
    )


def start(
    *transactions: Transaction, pipelining: bool = True, chunking: bool = False
) -> tuple[TransactionMachine, Owner, Wire]:
    owner = Owner(transactions)
    machine = TransactionMachine(owner, pipelining=pipelining, chunking=chunking)
    wire = Wire()
    machine.attach(wire)
    return machine, owner, wire


OPENING = b"MAIL FROM:<s@example.com>\r\nRCPT TO:<%b0@example.net>\r\nDATA\r\n"
OK3 = b"250 ok\r\n250 ok\r\n354 go\r\n"


def test_a_transaction_is_two_writes_and_the_next_rides_behind_the_dot() -> None:
    machine, owner, wire = start(txn("a"), txn("b"))
    assert wire.written == [OPENING % b"a"]
    wire.written.clear()
    machine.data_received(OK3)
    assert wire.written == [b"body a\r\n.\r\n" + OPENING % b"b"]
    wire.written.clear()
    machine.data_received(b"250 2.0.0 queued as 1\r\n" + OK3)
    assert owner.done[0].answers == [(DOT, 250, "2.0.0", "queued as 1")]
    assert wire.written == [b"body b\r\n.\r\n"]
    machine.data_received(b"250 2.0.0 queued as 2\r\n")
    assert [t.answers[0][1] for t in owner.done if t.answers[0]] == [250, 250]
    assert machine.is_idle
    assert machine.started == 2


@pytest.mark.parametrize("size", range(1, 12))
def test_replies_may_be_cut_anywhere(size: int) -> None:
    machine, owner, _ = start(txn("a"), txn("b"))
    stream = OK3
    for i in range(0, len(stream), size):
        machine.data_received(stream[i : i + size])
    stream = b"250 2.0.0 q1\r\n" + OK3
    for i in range(0, len(stream), size):
        machine.data_received(stream[i : i + size])
    for i in range(0, 14, size):
        machine.data_received(b"250 2.0.0 q2\r\n"[i : i + size])
    assert [t.answers for t in owner.done] == [[(DOT, 250, "2.0.0", "q1")], [(DOT, 250, "2.0.0", "q2")]]


def test_each_recipient_has_its_own_answer() -> None:
    machine, owner, _ = start(txn("a", 3))
    machine.data_received(
        b"250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n451 4.2.0 later\r\n354 go\r\n250 2.0.0 q\r\n"[:-13]
    )
    machine.data_received(b"250 2.0.0 q\r\n")
    assert owner.done[0].answers == [
        (DOT, 250, "2.0.0", "q"),
        (RCPT, 550, "5.1.1", "who?"),
        (RCPT, 451, "4.2.0", "later"),
    ]


def test_all_recipients_refused_and_data_refused_is_followed_by_rset() -> None:
    machine, owner, wire = start(txn("a"), txn("b"))
    wire.taken()
    machine.data_received(b"250 ok\r\n550 5.1.1 no\r\n554 no valid recipients\r\n")
    assert owner.done[0].answers == [(RCPT, 550, "5.1.1", "no")]
    assert wire.taken() == b"RSET\r\n" + OPENING % b"b"
    machine.data_received(b"250 reset\r\n" + OK3)
    machine.data_received(b"250 q\r\n")
    assert owner.done[1].answers == [(DOT, 250, "", "q")]


def test_all_recipients_refused_but_354_gets_a_lone_dot() -> None:
    machine, owner, wire = start(txn("a"))
    wire.taken()
    machine.data_received(b"250 ok\r\n550 5.1.1 no\r\n354 go on then\r\n")
    assert wire.taken() == b".\r\n"
    machine.data_received(b"250 2.0.0 took nothing\r\n")
    assert owner.done[0].answers == [(RCPT, 550, "5.1.1", "no")]
    assert not owner.done[0].possible_duplicate


def test_mail_refused() -> None:
    machine, owner, wire = start(txn("a", 2), txn("b"))
    wire.taken()
    machine.data_received(b"550 5.7.1 go away\r\n503 no\r\n503 no\r\n503 no\r\n")
    assert owner.done[0].answers == [(MAIL, 550, "5.7.1", "go away")] * 2
    assert wire.taken().startswith(b"RSET\r\nMAIL")


def test_data_refused_answers_the_accepted_recipients() -> None:
    machine, owner, _ = start(txn("a", 2))
    machine.data_received(b"250 ok\r\n250 ok\r\n550 no\r\n451 4.3.0 full\r\n")
    assert owner.done[0].answers == [(DATA, 451, "4.3.0", "full"), (RCPT, 550, "", "no")]


@pytest.mark.parametrize("extra", [b"250 2.0.0 queued\r\n", b"2", b"550 x\r\n"])
def test_input_before_the_dot_is_a_protocol_error_and_nothing_is_sent(extra: bytes) -> None:
    machine, owner, wire = start(txn("a"), txn("b"))
    wire.taken()
    machine.data_received(OK3 + extra)
    assert wire.taken() == b""
    assert owner.end is not None
    assert owner.end[0] == PROTOCOL
    assert owner.done[0].answers == [(DATA, 0, "", PROTOCOL)]
    assert not owner.done[0].possible_duplicate


def test_an_acceptance_before_the_message_has_left_us_is_not_believed() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    wire.buffered = 5
    machine.data_received(b"250 2.0.0 queued\r\n")
    assert owner.done[0].answers == [(DOT, 0, "", PROTOCOL)]
    assert owner.done[0].possible_duplicate


def test_an_early_refusal_is_believed_but_ends_the_session() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    wire.buffered = 5
    machine.data_received(b"552 5.3.4 too big\r\n")
    assert owner.done[0].answers == [(DOT, 552, "5.3.4", "too big")]
    assert owner.end is not None


def test_an_unsolicited_reply_ends_the_session() -> None:
    machine, owner, wire = start()
    machine.data_received(b"250 hello?\r\n")
    assert owner.end is not None
    assert owner.end[0] == PROTOCOL
    assert wire.closed == "aborted"


def test_250_to_data_is_not_an_acceptance() -> None:
    machine, owner, _ = start(txn("a"))
    machine.data_received(b"250 ok\r\n250 ok\r\n250 ok\r\n")
    assert owner.done[0].answers == [(DATA, 0, "", PROTOCOL)]


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_421_ends_the_session(replies: int) -> None:
    machine, owner, _ = start(txn("a"))
    machine.data_received(b"250 ok\r\n" * replies + b"421 4.3.2 bye\r\n")
    assert owner.end == (REFUSED, 421, "4.3.2", "bye")
    assert owner.done[0].answers == [((MAIL, RCPT, DATA)[replies], 421, "4.3.2", "bye")]


def test_421_to_the_dot_leaves_the_following_one_unbegun() -> None:
    machine, owner, _ = start(txn("a"), txn("b"))
    machine.data_received(OK3)
    machine.data_received(b"421 4.3.2 bye\r\n")
    assert owner.done[0].answers == [(DOT, 421, "4.3.2", "bye")]
    assert not owner.done[0].possible_duplicate
    assert owner.done[1].unbegun


def test_connection_lost_before_any_answer_is_unbegun() -> None:
    machine, owner, _ = start(txn("a"))
    machine.connection_lost(None)
    assert owner.done[0].unbegun
    assert owner.end is not None
    assert owner.end[0] == LOST


def test_connection_lost_after_the_dot_may_be_a_duplicate() -> None:
    machine, owner, _ = start(txn("a", 2), txn("b"))
    machine.data_received(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert machine.is_body_sent
    machine.connection_lost(None)
    assert owner.done[0].possible_duplicate
    assert owner.done[0].answers == [(DOT, 0, "", LOST), (RCPT, 550, "5.1.1", "no")]
    assert owner.done[1].unbegun
    assert not owner.done[1].possible_duplicate


def test_lost_midway_is_neither_unbegun_nor_a_duplicate() -> None:
    machine, owner, _ = start(txn("a"))
    machine.data_received(b"250 ok\r\n")
    machine.connection_lost(ConnectionResetError())
    assert owner.done[0].answers == [(RCPT, 0, "", LOST)]
    assert not owner.done[0].unbegun
    assert not owner.done[0].possible_duplicate


def test_lock_step_writes_one_command_at_a_time() -> None:
    machine, owner, wire = start(txn("a", 2), pipelining=False)
    assert wire.taken() == b"MAIL FROM:<s@example.com>\r\n"
    machine.data_received(b"250 ok\r\n")
    assert wire.taken() == b"RCPT TO:<a0@example.net>\r\n"
    machine.data_received(b"550 no\r\n")
    assert wire.taken() == b"RCPT TO:<a1@example.net>\r\n"
    machine.data_received(b"250 ok\r\n")
    assert wire.taken() == b"DATA\r\n"
    machine.data_received(b"354 go\r\n")
    assert wire.taken() == b"body a\r\n.\r\n"
    machine.data_received(b"250 q\r\n")
    assert owner.done[0].answers == [(RCPT, 550, "", "no"), (DOT, 250, "", "q")]


@pytest.mark.parametrize("replies", [b"250 ok\r\n550 5.1.1 another's\r\n", b"250 ok\r\n25"])
def test_lock_step_takes_no_second_reply_for_the_answer_to_what_it_has_yet_to_say(replies: bytes) -> None:
    machine, owner, wire = start(txn(), pipelining=False)
    wire.taken()
    machine.data_received(replies)
    assert owner.end is not None
    assert owner.end[0] == PROTOCOL
    assert wire.taken() == b""
    assert owner.done[0].answers[0][1] == 0, "nothing is known about the recipient"


def test_nothing_is_begun_while_something_unasked_for_is_unread() -> None:
    machine, owner, wire = start(txn("a"), pipelining=False)
    machine.data_received(b"250 ok\r\n")
    machine.data_received(b"250 ok\r\n")
    machine.data_received(b"354 go\r\n")
    machine.data_received(b"250 2.0.0 q\r\n")
    machine.data_received(b"250-half a repl")
    assert (len(owner.done), owner.end) == (1, None)
    wire.taken()
    owner.waiting.append(txn("b"))
    machine.kick()
    assert owner.end is not None
    assert owner.end[0] == PROTOCOL
    assert (wire.taken(), len(owner.waiting)) == (b"", 1)


def test_lock_step_skips_data_when_nobody_is_accepted() -> None:
    machine, owner, wire = start(txn("a"), txn("b"), pipelining=False)
    machine.data_received(b"250 ok\r\n")
    wire.taken()
    machine.data_received(b"550 no\r\n")
    assert wire.taken() == b"RSET\r\n"
    machine.data_received(b"250 ok\r\n")
    assert wire.taken() == b"MAIL FROM:<s@example.com>\r\n"
    assert len(owner.done) == 1


def test_bdat_is_one_write() -> None:
    machine, owner, wire = start(txn("a"), txn("b"), chunking=True)
    assert wire.written == [
        b"MAIL FROM:<s@example.com>\r\nRCPT TO:<a0@example.net>\r\nBDAT 8 LAST\r\nbody a\r\n"
    ]
    assert machine.is_body_sent
    wire.taken()
    machine.data_received(b"250 ok\r\n250 ok\r\n250 2.0.0 q\r\n")
    assert owner.done[0].answers == [(DOT, 250, "2.0.0", "q")]
    assert b"RSET" not in wire.taken()


def test_a_failed_bdat_is_followed_by_rset() -> None:
    machine, _, wire = start(txn("a"), txn("b"), chunking=True)
    wire.taken()
    machine.data_received(b"250 ok\r\n250 ok\r\n452 4.3.1 full\r\n")
    assert wire.taken().startswith(b"RSET\r\nMAIL")


def test_a_reply_too_many_to_what_went_out_in_one_write_proves_no_delivery() -> None:
    machine, owner, _ = start(txn("a"), txn("b"), chunking=True)
    machine.data_received(b"250 ok\r\n250 ok\r\n250 2.0.0 q\r\n250 2.0.0 another\r\n")
    assert owner.end is not None
    assert owner.end[0] == PROTOCOL
    assert owner.done[0].answers[0][1] == 0
    assert owner.done[0].possible_duplicate
    assert len(owner.waiting) == 1, "the next one was not begun"


def test_a_421_in_front_of_a_bdat_that_was_sent_may_be_a_duplicate() -> None:
    machine, owner, _ = start(txn("a"), chunking=True)
    machine.data_received(b"250 ok\r\n421 bye\r\n")
    assert owner.done[0].possible_duplicate


def test_quit_waits_for_what_is_under_way() -> None:
    machine, owner, wire = start(txn("a"), txn("b"))
    machine.quit()
    wire.taken()
    machine.data_received(OK3)
    assert wire.taken() == b"body a\r\n.\r\n", "nothing may follow once QUIT is wanted"
    machine.data_received(b"250 q\r\n")
    assert wire.taken() == b"QUIT\r\n"
    machine.data_received(b"221 bye\r\n")
    assert owner.end is not None
    assert owner.end[0] == QUITTED
    assert len(owner.done) == 1


@pytest.mark.parametrize(("replies", "limit_ns"), [(b"", 10), (b"250 ok\r\n", 10), (OK3, 100)])
def test_a_silent_peer_times_out_by_phase(replies: bytes, limit_ns: int) -> None:
    machine, owner, wire = start(txn("a"))
    if replies:
        machine.data_received(replies)
    machine.tick(1000, TIMEOUTS_NS)
    machine.tick(1000 + limit_ns - 1, TIMEOUTS_NS)
    assert owner.end is None
    machine.tick(1000 + limit_ns, TIMEOUTS_NS)
    assert owner.end is not None
    assert owner.end[0] == TIMEOUT
    assert wire.closed == "aborted"
    assert owner.done[0].possible_duplicate == (replies == OK3)


def test_a_body_that_keeps_leaving_does_not_time_out() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    for step in range(10):
        wire.buffered = 1000 - step
        machine.tick(1000 + step * 49, TIMEOUTS_NS)
    assert owner.end is None
    machine.tick(1000 + 9 * 49 + 50, TIMEOUTS_NS)
    assert owner.end is not None, "the block timeout, not the longer one of the dot"


def test_a_body_that_trickles_away_has_a_least_rate() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    # 1000 bytes at 500 bytes per 1000 ns, behind a block of 50 ns
    rate, now_ns = 500 * 10**6, 1000
    while owner.end is None and now_ns < 9000:
        wire.buffered = 1000 - (now_ns - 1000) // 40
        machine.tick(now_ns, TIMEOUTS_NS, rate)
        now_ns += 40
    assert owner.end is not None
    assert owner.end[0] == TIMEOUT
    assert 1000 + 2050 <= now_ns - 40 < 1000 + 2050 + 40
    assert not owner.done[0].possible_duplicate, "the final dot has never left"


def test_a_body_that_has_not_left_may_be_given_up() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    assert machine.is_body_sent
    wire.buffered = 1
    assert not machine.is_body_sent, "the peer cannot have the final dot"
    machine.abort()
    assert owner.end is not None
    assert not owner.done[0].possible_duplicate


def test_what_leaves_fast_enough_may_take_its_time() -> None:
    machine, owner, wire = start(txn("a"))
    machine.data_received(OK3)
    for step in range(40):
        wire.buffered = 1000 - 25 * step
        machine.tick(1000 + 48 * step, TIMEOUTS_NS, 500 * 10**6)
    wire.buffered = 0
    machine.tick(3000, TIMEOUTS_NS, 500 * 10**6)
    machine.tick(3099, TIMEOUTS_NS, 500 * 10**6)
    assert owner.end is None, "now it waits for the answer to the dot"
    machine.data_received(b"250 ok\r\n")
    assert owner.done[0].answers == [(DOT, 250, "", "ok")]


def test_a_transaction_has_a_deadline_whatever_progress_it_makes() -> None:
    machine, owner, _ = start(txn("a", recipients=10))
    machine.data_received(b"250 ok\r\n")
    for step in range(9):
        machine.data_received(b"250 ok\r\n")
        machine.tick(1000 + 1200 * step, (0, *[9000] * 7, 9000))
        assert (owner.end is None) == (step < 8)
    assert owner.end is not None
    assert owner.end[0] == TIMEOUT


def test_the_deadline_is_that_of_each_transaction() -> None:
    machine, owner, _ = start(*[txn(name) for name in "abcdef"])
    for step in range(6):
        machine.data_received(OK3)
        machine.tick(1000 + 100 * step, (0, *[9000] * 7, 150))
        machine.data_received(b"250 ok\r\n")
    assert owner.end is None
    assert len(owner.done) == 6


def test_an_idle_session_has_no_deadline() -> None:
    machine, owner, _ = start()
    machine.tick(1, TIMEOUTS_NS)
    machine.tick(10**15, TIMEOUTS_NS)
    assert owner.end is None


def test_abort_gives_everything_back_once() -> None:
    machine, owner, _ = start(txn("a"))
    machine.abort()
    machine.connection_lost(None)
    assert owner.end is not None
    assert owner.end[0] == ABORTED
    assert len(owner.done) == 1
    assert owner.done[0].unbegun


@pytest.mark.parametrize("address", [b"a\r\nDATA", b"a\n", b"a\0", b"a\x7f"])
def test_no_command_can_be_injected(address: bytes) -> None:
    with pytest.raises(ValueError, match="control character"):
        Transaction(address, [b"x@example.net"], b"\r\n")
    with pytest.raises(ValueError, match="control character"):
        Transaction(b"", [address], b"\r\n")
    with pytest.raises(ValueError, match="control character"):
        Transaction(b"", [b"x@example.net"], b"\r\n", mail_parameters=address)


def test_a_large_body_is_not_copied() -> None:
    body = b"x" * 70_000 + b"\r\n"
    machine, _, wire = start(Transaction(b"", [b"x@example.net"], body))
    wire.taken()
    machine.data_received(OK3)
    assert wire.written[0] is body
    assert wire.written[1] == b".\r\n"


class Far:
    """A server at the other end of a long line: answers at once whatever has reached it."""

    def __init__(self) -> None:
        self.data = b""
        self.body = -1  # bytes of a chunk that are to come; -1: commands, -2: lines up to the dot

    def answers(self, written: bytes) -> bytes:
        self.data += written
        replies = b""
        while self.data:
            if self.body >= 0:
                if len(self.data) < self.body:
                    break
                self.data = self.data[self.body :]
                self.body = -1
                replies += b"250 2.0.0 queued\r\n"
                continue
            line, end, rest = self.data.partition(b"\r\n")
            if not end:
                break
            self.data = rest
            if self.body == -2:
                if line == b".":
                    self.body = -1
                    replies += b"250 2.0.0 queued\r\n"
            elif line == b"DATA":
                self.body = -2
                replies += b"354 go\r\n"
            elif line.startswith(b"BDAT"):
                self.body = int(line.split()[1])
            else:
                replies += b"250 ok\r\n"
        return replies


@pytest.mark.parametrize(("chunking", "opening"), [(False, 1), (True, 0)], ids=["DATA", "BDAT"])
def test_a_message_costs_one_round_trip(chunking: bool, opening: int) -> None:
    """Counted in flights: all that the machine writes before it hears anything is one."""
    count = 50
    transactions = [
        Transaction(b"s@example.com", [b"r%d@example.net" % n], b"x" * 10_000 + b"\r\n") for n in range(count)
    ]
    machine, owner, wire = start(*transactions, chunking=chunking)
    far = Far()
    flights = 0
    while written := wire.taken():
        flights += 1
        machine.data_received(far.answers(written))
    assert [t.answers[0][1] for t in owner.done if t.answers[0]] == [250] * count
    assert flights == count + opening
