"""Which actors live and answer nothing: Fleet counts the pings of sources and gateways that nobody answers.

Pings are counted, not seconds: while Fleet itself was frozen it asked nobody. An error is no silence: Ray knows that
the actor is away, and makes it again. An actor that has not answered yet may just be starting, and gets more time. Does
not import Ray.
"""

HUNG_PINGS = 4  # each waited for during Fleet's PING_TIMEOUT_S (2 s), a second apart: some eleven seconds
STARTING_PINGS = 100  # five minutes: on a machine that does too much a start takes one


class Silence:
    """See the module docstring."""

    def __init__(self) -> None:
        self._unanswered: dict[str, int] = {}
        self._known: set[str] = set()  # have answered since they were made

    def answered(self, actor: str) -> None:
        self._unanswered[actor] = 0
        self._known.add(actor)

    def unanswered(self, actor: str) -> None:
        self._unanswered[actor] = self._unanswered.get(actor, 0) + 1

    def away(self, actor: str) -> None:
        """It is dead or being made again, or will be: begin anew."""
        self._unanswered.pop(actor, None)
        self._known.discard(actor)

    def ended(self, actor: str) -> None:
        """It is being killed; if that does not help, it is silent again."""
        self._unanswered[actor] = 0

    def hangs(self, actor: str) -> bool:
        most = HUNG_PINGS if actor in self._known else STARTING_PINGS
        return self._unanswered.get(actor, 0) >= most
