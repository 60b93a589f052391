"""What regions say to each other arrives as it was said."""

from typing import Any, get_args

from actors.peer_messages import packed, unpacked
from engine.failover.link import Link
from engine.failover.messages import (
    FORM,
    Ack,
    Ask,
    Beat,
    BeatReply,
    Behind,
    Claim,
    ClaimReply,
    Closed,
    Copy,
    Data,
    Drop,
    Hello,
    Known,
    Message,
    Promise,
    PromiseAsk,
    RegionView,
    Standby,
    Standing,
    Told,
    Update,
    Welcome,
)
from engine.failover.timing import Timing

SPANS = ((1 << 48 | 7, 2), (2 << 48 | 1, 1000))
SESSION = 1_900_000_000_000 << 24  # more than 64 bits
SAID: list[Message] = [
    Beat(SESSION, 2, 3, 4, -1, True, (RegionView("eu", Standing.SUSPECT, 4, 10),)),
    BeatReply(1, 2, 3, 4, True, (("eu", 7),), False, True),
    Behind(SESSION, SESSION + 1, 1 << 62),
    PromiseAsk(4, 10**18),
    Promise(10**18),
    Ask(4, SESSION, SPANS, True, 3, (("us", 9),)),
    Told(SESSION, SPANS, SPANS[0][0], Standby.ADOPT, 2),
    Hello(4, SESSION),
    Welcome(SESSION, SPANS, FORM),
    Data(SESSION, 5, Copy(SPANS, b"\0payload", b"k" * 16), 3),
    Data(SESSION, 6, Drop(SPANS)),
    Data(SESSION, 7, Update(SPANS, b"payload")),
    Ack(SESSION, 6),
    Closed(SESSION, "superseded"),
    Claim(1, b"k" * 16, (("us", 9),), True),
    ClaimReply(1, b"k" * 16, Known.PENDING, SPANS, True),
]


def test_every_kind_of_message_arrives_as_it_was_said() -> None:
    assert {type(message) for message in SAID} == set(get_args(Message))
    heard = unpacked(packed(SAID))
    assert list(heard) == SAID
    assert [type(message) for message in heard] == [type(message) for message in SAID]


def test_nothing_is_nothing() -> None:
    assert unpacked(packed([])) == ()


class Earlier(Welcome):
    """As a standby of an earlier release packs it: it has two fields."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Welcome.__new__, (Welcome,), [self.session, self.copies]


def test_a_standby_of_an_earlier_release_does_not_say_which_form_it_understands() -> None:
    link = Link(Timing(), life=1)
    for kind, form in ((Welcome, FORM), (Earlier, 1), (Welcome, FORM)):
        link.connect("b", 1, 0)
        (welcome,) = unpacked(packed([kind(link.session, SPANS, FORM)]))
        assert isinstance(welcome, Welcome)
        assert link.welcomed("b", welcome, 0)
        assert link.form == form
