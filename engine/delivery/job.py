"""One message on its way through a pool."""

from typing import Any, Final

PREPARING: Final = "preparing"


class Job:
    """An id that the region handed over, until its outcome is reported.

    `batch` is the batch number to report it under, `held_ns` when the pool got it, `tries` how often it went
    into a session that ended before the peer said anything. `form` is what engine/delivery/preparation.py makes of
    the message: None, PREPARING, a WireMessage or an Unsendable; `charged` its bytes; `seven_bit`: a host has shown
    that it takes nothing else. `begun_ns`: when the transaction began whose first it is, 0 if that is not timed.
    """

    __slots__ = (
        "batch",
        "begun_ns",
        "charged",
        "epoch",
        "form",
        "held_ns",
        "id",
        "record",
        "send_at_ns",
        "seven_bit",
        "site",
        "source",
        "term",
        "tries",
    )

    def __init__(
        self,
        id_: int,
        send_at_ns: int,
        *,
        site: str,
        source: int,
        batch: int,
        epoch: int,
        record: Any,
        held_ns: int,
        term: int = 0,
    ) -> None:
        self.id = id_
        self.send_at_ns = send_at_ns
        self.site = site
        self.source = source
        self.batch = batch
        self.epoch = epoch
        self.record = record
        self.held_ns = held_ns
        self.term = term
        self.tries = 0
        self.begun_ns = 0
        self.form: Any = None
        self.charged = 0
        self.seven_bit = False

    @property
    def domain(self) -> str:
        return str(self.record.recipient).rpartition("@")[2].lower()

    @property
    def tls_wish(self) -> int:
        """What the message demands of TLS beyond what its domain does (engine/values/options.py), 0 for nothing: each
        has a route, and so lanes and sessions, of its own."""
        options = self.record.options
        return 0 if options is None else int(options.tls_wish)

    @property
    def requires_tls(self) -> bool:
        """REQUIRETLS: its hosts must prove their name and offer the same."""
        options = self.record.options
        return options is not None and bool(options.requires_tls)
