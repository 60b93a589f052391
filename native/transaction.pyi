from collections.abc import Sequence
from typing import Any, Protocol

MAIL: int
RCPT: int
DATA: int
DOT: int
RSET: int
QUIT: int
IDLE: int

QUITTED: str
REFUSED: str
LOST: str
TIMEOUT: str
PROTOCOL: str
ABORTED: str

class Transaction:
    mail: bytes
    rcpts: list[bytes]
    body: bytes
    jobs: Any
    answers: list[tuple[int, int, str, str] | None]
    unbegun: bool
    possible_duplicate: bool
    def __init__(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        body: bytes,
        *,
        mail_parameters: bytes = b"",
        recipient_parameters: Sequence[bytes] = (),
        jobs: Any = None,
    ) -> None: ...

class Owner(Protocol):
    def next_transaction(self, machine: TransactionMachine) -> Transaction | None: ...
    def transaction_ended(self, machine: TransactionMachine, transaction: Transaction) -> None: ...
    def session_ended(
        self, machine: TransactionMachine, reason: str, code: int, enhanced: str, text: str
    ) -> None: ...

class TransactionMachine:
    owner: Any
    transport: Any
    started: int
    def __init__(self, owner: Owner, *, pipelining: bool, chunking: bool) -> None: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def is_body_sent(self) -> bool: ...
    @property
    def phase(self) -> int: ...
    @property
    def transactions(self) -> list[Transaction]: ...
    def attach(self, transport: Any, wire: Any = None) -> None: ...
    def kick(self) -> None: ...
    def quit(self) -> None: ...
    def abort(self) -> None: ...
    def tick(self, now_ns: int, timeouts_ns: tuple[int, ...], least_rate: int = 0) -> None: ...
    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, exc: BaseException | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
