"""The standby's side of a stream: entries in order, whatever order they come in, and no session with a gap."""

from engine.failover.effects import Effect, Send, Write
from engine.failover.messages import Ack, Ask, Closed, Copy, Data, Drop, Hello, Message, RegionView, Standing
from engine.failover.standby import NO_SESSION, StandbyRole
from engine.failover.store import Adopt, Adopted, Apply, Inspect, OpenSession


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


def test_the_key_of_a_copy_is_confirmed_once_its_owner_knows_that_the_copy_is_safe() -> None:
    role = StandbyRole({}, {})
    greeted(role)
    key = b"k" * 16

    def confirmed(number: int, entry: Copy | Drop, base: int) -> list[tuple[bytes, ...]]:
        effects = role.data("a", Data(7, number, entry, base))
        applied(role, effects)
        written = [effect.operation for effect in effects if isinstance(effect, Write)]
        return [operation.confirmed for operation in written if isinstance(operation, Apply)]

    assert confirmed(0, Copy(((1, 1),), b"", key), 0) == [()]
    assert confirmed(1, Copy(((2, 1),), b""), 0) == [()]
    assert confirmed(2, Drop(()), 1) == [(key,)]
    assert confirmed(3, Drop(()), 3) == [()]


def test_what_the_owner_knows_is_not_lost_when_its_entries_overtake_each_other() -> None:
    role = StandbyRole({}, {})
    greeted(role)
    key = b"k" * 16
    applied(role, role.data("a", Data(7, 0, Copy(((1, 1),), b"", key), 0)))
    assert role.data("a", Data(7, 2, Drop(((1, 1),)), 1)) == []
    first, second = [e.operation for e in role.data("a", Data(7, 1, Drop(()), 0)) if isinstance(e, Write)]
    assert isinstance(first, Apply)
    assert isinstance(second, Apply)
    assert (first.confirmed, second.confirmed) == ((key,), ())


def is_adopted(role: StandbyRole, *, more: bool = False) -> bool:
    """Whether it adopts from a, which was called dead in epoch 5; and it does so, but for the rest (`more`)."""
    effects = role.obey((RegionView("a", Standing.DEAD, 5),), "b", 3)
    for effect in effects:
        assert isinstance(effect, Write)
        assert isinstance(effect.operation, Adopt)
        role.adopted(effect.operation, Adopted((), more=more))
    return bool(effects)


def test_an_adoption_that_an_earlier_process_did_not_end_goes_on() -> None:
    role = StandbyRole({"a": 5}, {"a": 4}, ["a"])
    assert is_adopted(role)
    assert not is_adopted(role)


def test_so_does_one_in_which_this_region_was_called_dead_itself() -> None:
    role = StandbyRole({}, {"a": 4})
    assert is_adopted(role, more=True)
    assert not is_adopted(role)  # it is at it
    role.reset()
    assert is_adopted(role)
    assert not is_adopted(role)


def test_of_a_region_that_has_asked_on_its_return_nothing_is_adopted_again() -> None:
    assert not is_adopted(StandbyRole({"a": 5}, {"a": 4}))
    role = StandbyRole({"a": 5}, {"a": 4}, ["a"])
    role.inspected(Inspect("a", 5, 1, ()))
    assert not is_adopted(role)


def test_a_question_that_comes_when_its_asker_has_returned_already_changes_nothing() -> None:
    """Its copies here are of the life that it has now: on a disk that was new then they are no heritage."""
    for is_fresh in (True, False):
        role = StandbyRole({}, {})
        greeted(role)
        applied(role, role.data("a", Data(7, 0, Copy(((1, 1),), b""))))
        assert role.asked("a", Ask(1, 1, (), is_fresh), 1) == []
        assert applied(role, role.data("a", Data(7, 1, Drop(((1, 1),))))) == [Ack(7, 2)]
        assert role.asked("a", Ask(2, 1, (), is_fresh), 1) != []
