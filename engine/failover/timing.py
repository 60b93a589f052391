"""The protocol's intervals, in nanoseconds, and what bounds them to each other.

A lease is counted by the one who holds it from the moment at which it asked, by the one who gives it from the moment
at which the question arrived; so the giver's end is never before the holder's, whatever the network did in between.
`margin` covers what is left: clocks that run at different rates (7 % of a lease), and a message that was on its way
to the wire when the lease ended.
"""

from dataclasses import dataclass

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals of one fleet. The defaults are those of DESIGN.md, section 10."""

    beat: int = 100 * MS
    lease: int = 700 * MS
    margin: int = 50 * MS
    misses: int = 3  # so many beats without an answer: suspect
    resend: int = 150 * MS  # an unanswered message between regions is sent again
    slot: int = 2_000 * MS  # a region that returns lets another try after so long
    late: int = 2_000 * MS  # what a client sent may arrive so late, after it has gone elsewhere
    patience: int = 400 * MS  # a standby that acknowledges nothing for so long counts as out of reach
    stall: int = 1_000 * MS  # a region whose disk does nothing for longer answers no beat
    patient: int = (
        1_200 * MS
    )  # an enquiry that is not answered is repeated after twice as long each time, at most this
    gather: int = 2_000 * MS  # a Fleet that starts waits so long for all regions, where none is sending
    ramp: int = 10_000 * MS  # a region that returned gets its full share of new mail after so long

    def __post_init__(self) -> None:
        if not 0 < self.beat * self.misses < self.lease:
            raise ValueError(
                f"lease: {self.lease // MS} ms, allowed is more than misses * beat "
                f"({self.misses * self.beat // MS} ms)"
            )

    @property
    def suspect(self) -> int:
        """Silence after which nothing new is sent to a region."""
        return self.beat * self.misses

    @property
    def expiry(self) -> int:
        """The giver's length of a lease: after so long without a question nobody can hold it any more."""
        return self.lease + self.margin
