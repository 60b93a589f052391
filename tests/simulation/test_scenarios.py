"""Failures in an order that random schedules seldom meet, each written down by hand."""

import itertools

import pytest

from engine.failover import standby_choice
from engine.failover.link import WINDOW
from engine.failover.messages import Ack, Claim, Data, Message, Told
from engine.failover.region import RegionMachine
from engine.failover.rendezvous import rank
from engine.failover.spans import ids_of
from engine.failover.timing import MS
from tests.simulation.mutations import KeepsNoCopy
from tests.simulation.scene import FAR, KEY, SEEDS, Scene, cut, no, no_copies
from tests.simulation.world import Request, World
from tests.support.failover_store import Owned


@pytest.mark.parametrize("keys_at_once", [0, 1])
@pytest.mark.parametrize("later", [FAR, 0], ids=["queued", "sent"])
def test_what_an_adopter_was_told_its_own_standby_hears_of(later: int, keys_at_once: int) -> None:
    """In the session that they have: the owner is back on a new disk, long before the adopter dies."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, keys_at_once)
        if not scene.cast(chain=True):
            continue
        tried += 1
        request = scene.accepted(later=later)
        scene.after(1500)
        scene.lose_disk(scene.owner)
        scene.after(1500)
        scene.start(scene.owner)
        scene.after(8000)
        scene.stop(scene.standby)
        scene.after(1500)
        scene.asks_again(request, scene.other, scene.standby, scene.owner)
    assert tried


@pytest.mark.parametrize("machine", [RegionMachine, KeepsNoCopy])
def test_what_is_given_up_to_one_whose_disk_is_lost_next_is_still_a_copy(
    machine: type[RegionMachine],
) -> None:
    """Of two regions: the adopter has had nobody to copy it to."""
    scene = Scene(1, regions=2, machine=machine)
    assert scene.cast()
    request = scene.accepted()
    scene.stop(scene.owner)
    scene.after(1500)
    scene.rules.append(no(Data, scene.standby))
    scene.start(scene.owner)
    scene.after(1500)
    assert scene.world.nodes[scene.owner].disk.clean
    scene.lose_disk(scene.standby)
    scene.after(1500)
    assert scene.is_there(request) is (machine is RegionMachine)


@pytest.mark.parametrize("is_owner_back", [True, False])
def test_a_key_whose_messages_go_on_to_another_adopter_stays_known(is_owner_back: bool) -> None:
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast(chain=True):
            continue
        tried += 1
        request = scene.accepted()
        if is_owner_back:
            scene.lose_disk(scene.owner)
        else:
            scene.stop(scene.owner)
        scene.after(1500)
        scene.stop(scene.standby)
        scene.after(1200)
        scene.start(scene.standby)
        scene.after(2500)
        if is_owner_back:
            scene.start(scene.owner)
            scene.after(3000)
        scene.asks_again(request, scene.other, scene.standby, scene.owner)
    assert tried


def test_a_region_on_a_new_disk_waits_until_what_another_knows_is_on_two_disks() -> None:
    """The other was dead when it returned, has come back since, and dies before its standby knows it."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast():
            continue
        tried += 1
        request = scene.accepted()
        scene.stop(scene.standby)
        scene.lose_disk(scene.owner)
        scene.after(1500)
        scene.start(scene.owner)
        scene.after(2500)
        scene.rules.append(no(Data, scene.standby))
        scene.start(scene.standby)
        scene.after(1500)
        scene.stop(scene.standby)
        scene.after(1200)
        scene.asks_again(request, scene.other, scene.owner)
        scene.rules.clear()
        scene.start(scene.standby)
        scene.after(4000)
        scene.asks_again(request, scene.other, scene.owner)
        assert request.receipt == scene.world.acked[KEY]
    assert tried


@pytest.mark.parametrize("again", [True, False])
def test_nobody_vouches_for_a_batch_that_its_owner_has_taken_back_without_a_receipt(
    again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adopter had told its standby the keys, not the messages yet; then it dies, and the owner returns. Of three
    regions two copy to each other, as after a death and a return, until they are idle for a moment."""
    monkeypatch.setattr(standby_choice, "preferred", lambda name, _, live: rank(name.encode(), live)[0])
    tried = 0
    for seed in range(40):
        scene = Scene(seed)
        if not scene.cast(chain=False):
            continue
        owner, standby, other = scene.owner, scene.standby, scene.other
        scene.rules.append(no(Ack, standby, owner))
        scene.world.submit(KEY, 1, later=FAR, to=owner)
        request = scene.world.requests[KEY]
        request.order, request.tries = [owner], 1
        scene.after(40)
        request.token = -1
        if not scene.world.nodes[standby].disk.hearsay:
            continue
        tried += 1
        scene.stop(owner)
        scene.rules[:] = [no_copies(standby)]
        scene.after(1500)
        scene.stop(standby)
        scene.after(1200)
        scene.rules[:] = [no(Claim, owner)]
        scene.start(owner)
        scene.after(2500)
        scene.start(standby)
        scene.after(2500)
        scene.asks(request, other, again=again)
        scene.after(300)
        if KEY not in scene.world.acked:
            continue
        scene.lose_disk(owner)
        scene.after(2000)
        scene.rules.clear()
        scene.start(owner)
        scene.after(5000)
        assert scene.is_there(request)
    assert tried


def test_a_promise_outlives_the_process_that_gave_it() -> None:
    """A first submission that comes late, to a process that is younger than the promise not to take it unasked."""
    world = World(1, regions=3)
    world.run(2500 * MS)
    taker = next(name for name in world.names if world.nodes[name].disk.standby)
    first = next(name for name in world.names if name not in (taker, world.nodes[taker].disk.standby))
    request = world.requests[KEY] = Request(KEY, 1, [taker], tries=1, due=FAR)
    world._try(request)
    while KEY not in world.acked:
        world.run(world.now + MS)
    request.receipt = world.acked[KEY]
    node = world.nodes[first]
    node.stop()
    world.run(world.now + 100 * MS)
    node.start()
    world.run(world.now + 900 * MS)
    assert node.machine is not None
    assert node.machine.counters.returns == 0
    world.tokens[10**9] = request
    node.do(node.machine.submit(10**9, KEY, 1, node.local(), again=False))
    world.run(world.now + 500 * MS)
    assert request.receipt == world.acked[KEY]


@pytest.mark.parametrize("are_copies_slow", [False, True])
def test_what_an_adopter_gives_back_has_a_copy_before(are_copies_slow: bool) -> None:
    """It has given a receipt for what it had adopted, without a copy of its own; the owner has it without a receipt."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast(chain=True):
            continue
        owner, standby = scene.owner, scene.standby
        scene.rules.append(no(Ack, standby, owner))
        scene.world.submit(KEY, 1, later=FAR, to=owner)
        request = scene.world.requests[KEY]
        request.order = [owner]
        scene.after(40)
        request.token = -1
        scene.stop(owner)
        scene.rules[:] = [no_copies(standby)]
        scene.after(900)
        for _ in range(8):
            if KEY not in scene.world.acked:
                scene.asks(request, standby, again=True)
                scene.after(60)
        scene.stop(standby)
        if KEY not in scene.world.acked:
            continue
        tried += 1
        scene.after(1200)
        scene.rules.clear()
        scene.start(owner)
        for _ in range(3000):
            if scene.world.nodes[owner].disk.clean:
                break
            scene.after(1)
        if are_copies_slow:
            scene.rules[:] = [no(Claim, owner), no_copies(owner)]
        scene.start(standby)
        ids = ids_of(scene.world.acked[KEY])
        for _ in range(4000):
            if scene.world.nodes[standby].disk.owned.keys().isdisjoint(ids):
                break
            scene.after(1)
        scene.lose_disk(owner)
        scene.after(2000)
        scene.rules.clear()
        scene.start(owner)
        scene.after(5000)
        assert scene.is_there(request)
    assert tried


@pytest.mark.parametrize("later", [FAR, 0], ids=["queued", "sent"])
def test_a_standby_that_returns_on_a_new_disk_is_told_everything(later: int) -> None:
    """Also by an owner that has nothing new to tell it; the third region was away, so no other could be chosen."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast(chain=True):
            continue
        tried += 1
        request = scene.accepted(later=later)
        scene.after(1500)
        scene.stop(scene.other)
        scene.lose_disk(scene.standby)
        scene.after(1500)
        scene.start(scene.standby)
        scene.after(2500)
        scene.start(scene.other)
        scene.after(4000)
        assert sum(scene.is_known_on(node.disk) for node in scene.world.nodes.values()) >= 2
        scene.stop(scene.owner)
        scene.after(1500)
        scene.asks_again(request, scene.other, scene.standby)
        scene.start(scene.owner)
        scene.after(4000)
        assert scene.is_there(request)
    assert tried


def test_a_key_that_was_withheld_is_told_when_its_message_was_sent_meanwhile() -> None:
    """Before its own copy was made: the standby's answers are late, and all keys take several windows."""
    tried = 0
    for seed in range(4):
        scene = Scene(seed, 1)
        if not scene.cast(chain=True):
            continue
        tried += 1
        world, standby, other = scene.world, scene.standby, scene.other
        for number in range(100, 150):
            world.submit(b"%016d" % number, 1, to=standby)
            scene.after(5)
        scene.after(2500)
        request = scene.accepted(later=6500 * MS)
        scene.lose_disk(scene.owner)
        late = no(Ack, other, standby)
        scene.rules.append(late)
        scene.after(1500)
        scene.start(scene.owner)
        scene.after(2500)
        scene.rules.clear()
        machine = world.nodes[standby].machine
        assert machine is not None
        backlog = machine.link._backlog
        for _ in range(2000):
            if backlog.keys and backlog.cursor > KEY and len(machine.link._window) == WINDOW:
                break
            scene.after(1)
        scene.rules.append(late)
        scene.after(5000)
        scene.rules.clear()
        scene.after(3000)
        disk = world.nodes[other].disk
        assert KEY in disk.keys or (KEY, standby) in disk.hearsay
        scene.stop(standby)
        scene.after(1500)
        scene.asks_again(request, other, scene.owner)
    assert tried


def test_the_key_of_a_degraded_receipt_reaches_the_standby_with_its_copy() -> None:
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, accept_local=True)
        if not scene.cast(chain=True):
            continue
        world, owner, standby = scene.world, scene.owner, scene.standby
        world.submit(b"%016d" % 90, 1, to=owner)
        scene.after(1000)
        scene.rules.append(no(Ack, standby, owner))
        world.submit(b"%016d" % 91, 1, to=owner)
        world.requests[b"%016d" % 91].order = [owner]
        scene.after(600)
        request = world.requests[KEY] = Request(KEY, 1, [owner], due=world.now + FAR)
        world._try(request)
        scene.after(900)
        if KEY not in world.degraded:
            continue
        tried += 1
        scene.rules.clear()
        scene.after(3000)
        disk = world.nodes[standby].disk
        assert (KEY, owner) in disk.hearsay or KEY in disk.keys
        assert not disk.copies[owner].keys().isdisjoint(ids_of(world.acked[KEY]))
    assert tried


def test_a_steady_trickle_of_own_mail_keeps_nobody_waiting() -> None:
    """Bounces and notices have no batch key: some are on their way at every beat."""
    scene = Scene(3)
    assert scene.cast(chain=True)
    world, owner, standby = scene.world, scene.owner, scene.standby
    scene.stop(standby)
    scene.lose_disk(owner)
    scene.after(1500)
    scene.start(owner)
    scene.after(2500)
    numbers = itertools.count((1 << 40) + (world.numbers[standby] << 48))
    node = world.nodes[standby]
    send = world.send

    def far(source: str, target: str, message: Message) -> None:
        if {source, target} == {standby, node.disk.standby}:
            world.at(80 * MS, lambda: send(source, target, message))
        else:
            send(source, target, message)

    def trickle() -> None:
        if node.machine is not None and node.machine.own.is_live():
            id_ = next(numbers)
            node.disk.owned[id_] = Owned(world.now + 1000 * MS)
            node.free.add(id_)
            node.machine.link.owns(((id_, 1),))
            node.do(node.machine.flush(node.local()))
        world.at(20 * MS, trickle)

    world.send = far  # type: ignore[method-assign]
    trickle()
    scene.start(standby)
    scene.after(12_000)
    machine = world.nodes[owner].machine
    assert machine is not None
    assert not machine.own.unasked


def test_an_owner_greets_a_standby_that_has_returned_though_fleet_is_away() -> None:
    """The region lives by the promise of its standby, and would accept nothing without a session."""
    tried = 0
    for seed in range(6):
        scene = Scene(seed, regions=2)
        if not scene.cast():
            continue
        tried += 1
        world, owner, standby = scene.world, scene.owner, scene.standby
        scene.after(1000)
        scene.stop(standby)
        scene.after(1200)
        told: list[int] = []

        def watch(source: str, _: str, message: Message, owner: str = owner, told: list[int] = told) -> bool:
            if source == owner and isinstance(message, Told):
                told.append(1)
            return False

        scene.rules.append(watch)
        scene.start(standby)
        for _ in range(3000):
            if told and world.nodes[standby].disk.clean:
                break
            scene.after(1)
        world.stop_fleet()
        scene.after(5000)
        request = world.requests[KEY] = Request(KEY, 1, [owner], due=FAR)
        world._try(request)
        scene.after(5000)
        assert KEY in world.acked
    assert tried


def test_degraded_receipts_do_not_keep_a_returning_region_waiting() -> None:
    """Each once began the export of all keys anew, which came before the copies."""
    scene = Scene(1, 1, accept_local=True)
    assert scene.cast(chain=True)
    world, owner, standby = scene.world, scene.owner, scene.standby
    for number in range(4000):
        world.nodes[owner].disk.keys[b"%016d" % (10**6 + number)] = ((1 << 40, 1),)
    stall = no(Ack, standby, owner)
    numbers = itertools.count(1000)
    scene.stop(scene.other)
    scene.after(1500)
    for turn in range(10):
        if turn == 3:
            scene.start(scene.other)
        scene.rules.append(stall)
        for number in itertools.islice(numbers, 6):
            key = b"%016d" % number
            world.requests[key] = Request(key, 1, [owner], due=world.now + FAR)
            world._try(world.requests[key])
            scene.after(100)
        scene.rules.remove(stall)
        scene.after(900)
    assert world.degraded
    assert world.nodes[scene.other].disk.clean


def test_keys_of_degraded_receipts_are_told_when_the_standby_answers_again() -> None:
    """Also of what was sent before its copy was made; and receipts that are asked for again are whole then."""
    tried = 0
    for seed in range(4):
        scene = Scene(seed, 1, accept_local=True)
        if not scene.cast(chain=True):
            continue
        tried += 1
        world, owner, standby = scene.world, scene.owner, scene.standby
        scene.rules.append(no(Ack, standby, owner))
        for number in range(60):
            key = b"%016d" % (1000 + number)
            world.requests[key] = Request(key, 1, [owner], due=world.now)
            world._try(world.requests[key])
            scene.after(20)
        scene.after(3000)
        scene.rules.clear()
        scene.after(3000)
        machine = world.nodes[owner].machine
        assert machine is not None
        assert world.degraded
        assert world.acked.keys() <= world.nodes[standby].disk.keys.keys()
        assert machine.link.is_complete()
        assert not machine.own.may_be_alone()
    assert tried


def test_a_batch_whose_release_was_overtaken_by_a_death_is_asked_for() -> None:
    """With `accept_local`: nobody got a receipt, a restart must not make it whole, another region has accepted it."""
    tried = 0
    for seed in range(6):
        scene = Scene(seed, accept_local=True)
        if not scene.cast(chain=True):
            continue
        tried += 1
        world, owner = scene.world, scene.owner
        node = world.nodes[owner]
        scene.rules.append(cut(owner))
        scene.after(1200)
        first = world.requests[b"%016d" % 99] = Request(b"%016d" % 99, 1, [owner], due=world.now + FAR)
        scene.asks(first, owner, again=False)
        scene.after(700)
        request = world.requests[KEY] = Request(KEY, 1, [owner], tries=1, due=world.now + FAR)
        scene.asks(request, owner, again=False)
        node.stall_until = world.now + 450 * MS
        scene.after(10)
        scene.rules.clear()
        for _ in range(3000):
            scene.after(1)
            if not node.disk.clean:
                break
        scene.stop(owner)
        request.order, request.tries = [scene.other], 1
        world._try(request)
        scene.after(3000)
        scene.start(owner)
        scene.after(6000)
        scene.asks_again(request, owner, again=False)
    assert tried
