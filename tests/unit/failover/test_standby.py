"""The standby's side of a stream: entries in order, whatever order they come in, and no session with a gap."""

from engine.failover.effects import Effect, Send, Write
from engine.failover.messages import Ack, Closed, Data, Drop, Hello, Message
from engine.failover.standby import NO_SESSION, StandbyRole
from engine.failover.store import Apply, OpenSession


def greeted(role: StandbyRole, session: int = 7) -> None:
    (write,) = role.hello("a", Hello(1, session))
    assert isinstance(write, Write)
    assert isinstance(write.operation, OpenSession)
    role.opened(write.operation, ())


def sent(effects: list[Effect]) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send)]


def applied(role: StandbyRole, effects: list[Effect]) -> list[Message]:
    """The store takes every entry; what the owner is told."""
    answers = []
    for effect in effects:
        assert isinstance(effect, Write)
        assert isinstance(effect.operation, Apply)
        answers += sent(role.applied(effect.operation, ""))
    return answers


def test_entries_are_applied_in_order_and_acknowledged_when_they_are_on_disk() -> None:
    role = StandbyRole({}, {})
    greeted(role)
    assert role.data("a", Data(7, 1, Drop(((2, 1),)))) == []
    effects = role.data("a", Data(7, 0, Drop(((1, 1),))))
    assert [e.operation.number for e in effects if isinstance(e, Write)] == [0, 1]  # type: ignore[union-attr]
    assert applied(role, effects) == [Ack(7, 1), Ack(7, 2)]
    assert sent(role.data("a", Data(7, 1, Drop(())))) == [Ack(7, 2)]


def test_a_session_that_was_lost_and_greeted_again_late_is_closed() -> None:
    """Its first entries were acknowledged before: they do not come again."""
    role = StandbyRole({}, {})
    greeted(role)
    applied(role, role.data("a", Data(7, 0, Drop(((1, 1),)))))
    role.reset()
    greeted(role)  # the same greeting, which had been on its way
    assert sent(role.data("a", Data(7, 1, Drop(((2, 1),)), base=1))) == [Closed(7, NO_SESSION)]


def test_a_session_that_was_lost_before_anything_was_acknowledged_goes_on() -> None:
    role = StandbyRole({}, {})
    greeted(role)
    role.reset()
    greeted(role)
    assert role.data("a", Data(7, 1, Drop(((2, 1),)), base=0)) == []
    assert applied(role, role.data("a", Data(7, 0, Drop(((1, 1),)), base=0))) == [Ack(7, 1), Ack(7, 2)]
