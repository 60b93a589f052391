"""What a pool needs from other rooms, as Protocols: records and bodies, routes, sessions, reports."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from engine.routing.route import HostAnswer
from engine.smtp.opener import Opened, OpenFailure, Target
from engine.tls.policy import HostPolicy, PolicyRefusal
from engine.values.options import Options
from engine.values.reply import Reply


class PoolFailed(ConnectionError):
    """The pool cannot go on; what it holds is settled when its process has ended."""


class Record(Protocol):
    """One queued message as the spool holds it. `content` is opaque here, but equal means the same bytes:
    [segment, offset, length, crc32], or [campaign number, [field values]] for a message that is still to be
    rendered.
    """

    @property
    def sender(self) -> str: ...
    @property
    def recipient(self) -> str: ...
    @property
    def content(self) -> Any: ...
    @property
    def id(self) -> int: ...
    @property
    def accepted_ms(self) -> int: ...
    @property
    def expires_ms(self) -> int: ...
    @property
    def options(self) -> Options | None: ...


class Records(Protocol):
    """Read access to the region's spool (engine/spool: SpoolReader)."""

    def fetch(self, ids: bytes) -> Sequence[Any]:
        """Records of packed ids (8 bytes each, little endian), None for one that is gone, text for one that cannot be
        read: why.
        """

    def body(self, content: Any) -> bytes | memoryview:
        """The bytes of a stored body, checked against its CRC; raises if they are damaged."""

    def tenant_of(self, record: Any) -> str:
        """The tenant whose message it is."""


class RouteHost(Protocol):
    """One host of a route."""

    @property
    def name(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def preference(self) -> int: ...


class PoolRoute(Protocol):
    """Where mail for a domain goes (engine/routing: Route). Hashable; equal routes share sessions."""

    @property
    def site(self) -> str: ...
    @property
    def hosts(self) -> Sequence[Any]: ...
    @property
    def auth(self) -> Any: ...


class RouteFailure(Protocol):
    """There is no route. `kind` is "deferred" or "bounced"."""

    @property
    def kind(self) -> str: ...
    @property
    def reply(self) -> Reply: ...


class Routes(Protocol):
    """Routes with their TLS policies (engine/tls/routes.py: SecureRoutes)."""

    async def route(self, domain: str) -> Any: ...
    def cached(self, domain: str) -> Any: ...
    async def addresses(self, host: str) -> HostAnswer: ...
    async def policy(self, route: Any, host: Any, answer: HostAnswer) -> HostPolicy | PolicyRefusal: ...
    def wished(self, route: Any, tls_wish: int) -> Any: ...


class Opener(Protocol):
    """engine/smtp/opener.py: open_session."""

    async def __call__(self, target: Target, *, timeout_s: float) -> Opened | OpenFailure: ...


class PoolProfile(Protocol):
    """The numbers of engine/providers that a pool keeps."""

    @property
    def name(self) -> str: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def max_connections_total(self) -> int | None: ...
    @property
    def messages_per_connection(self) -> int: ...
    @property
    def max_recipients(self) -> int: ...
    @property
    def rate(self) -> Any: ...
    @property
    def rate_total(self) -> Any: ...
    @property
    def pipelining(self) -> bool: ...
    @property
    def chunking(self) -> bool: ...
    @property
    def idle_timeout_s(self) -> float: ...
    @property
    def transaction_timeout_s(self) -> float: ...
    @property
    def min_data_rate(self) -> int: ...


class LeaseCheck(Protocol):
    """Whether the region may still send (engine/region/lease_file.py)."""

    def allows(self, epoch: int, now_ns: int) -> bool: ...


class EgressSource(Protocol):
    """A source of the fleet configuration."""

    @property
    def name(self) -> str: ...
    @property
    def ip(self) -> Any: ...
    @property
    def ehlo(self) -> str: ...


# (id, record) -> complete message with CRLF line ends; the same bytes on each attempt
Render: TypeAlias = Callable[[int, Any], bytes]
ReportSink: TypeAlias = Callable[[bytes], None]
