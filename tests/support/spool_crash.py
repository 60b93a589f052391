"""A spool that is killed over and over, and a model that knows what it has promised.

Run as a program below tests/support/diskfault: it forks one life after the other on the same spool directory. A life
opens the spool, works with it, and tells the model through a pipe what it is about to do, what was answered and which
messages it has "sent"; somewhere it is killed. Then a second child opens what is left and compares it with the model:

- every acknowledged message is there, with its body, in the state that was acknowledged;
- an operation that was not answered is on disk completely or not at all, and repeating an accept finds or makes it;
- conservation (engine/spool/audit.py), and one final event per message that is final;
- a message that was sent without its outcome being on disk is marked, so that a second sending is a possible duplicate;
- counters of limits are never behind what was charged.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

from engine.spool.audit import audit
from engine.spool.batches import AcceptBatch, Remember
from engine.spool.errors import SpoolError
from engine.spool.records import MAYBE_SENT
from engine.spool.store import Spool
from engine.values.options import Notify, Options
from engine.values.outcome import FINAL_KINDS, OutcomeKind
from tests.support.diskfault import DiskFault, Mode
from tests.support.spools import (
    CAMPAIGN,
    PATIENCE_S,
    batch,
    chunk,
    due,
    id_of,
    letter,
    open_spool,
    packed,
    settlement,
)

SEGMENT_SIZE = 6000
LIVES_PER_SPOOL = 8  # on average
ROUNDS = 12
REMEMBER = Remember(1 << 47, "site")
KINDS = [OutcomeKind.DELIVERED] * 3 + [OutcomeKind.DEFERRED] * 2 + [OutcomeKind.BOUNCED, OutcomeKind.RETURNED]


@dataclass(slots=True)
class Message:
    """What the model knows of an acknowledged message."""

    batch: int
    place: int
    attempts: int = 0
    state: OutcomeKind = OutcomeKind.QUEUED
    is_sent: bool = False
    is_marked: bool = False


@dataclass(slots=True)
class Model:
    """Promises, and what hangs in the air."""

    messages: dict[int, Message] = field(default_factory=dict)
    asked: dict[int, list[Any]] = field(default_factory=dict)  # operations without an answer, by number
    charged: int = 0
    next_number: int = 1

    def hear(self, note: list[Any]) -> None:
        """Take in one note of a life."""
        word, *rest = note
        if word == "ask":
            self.asked[rest[0]] = rest[1:]
            self.next_number = max(self.next_number, rest[0] + 1)
        elif word == "answer":
            number, result = rest
            self.answered(number, self.asked.pop(number), result)

    def answered(self, number: int, operation: list[Any], result: Any) -> None:
        kind = operation[0]
        if kind in ("accept", "chunk"):
            for place, id_ in enumerate(result):
                self.messages.setdefault(id_, Message(number, place))
        elif kind == "settle":
            for id_, outcome in operation[1]:
                self.settled(id_, OutcomeKind(outcome))
        elif kind == "dispatch":
            self.charged = operation[2]
            for id_ in operation[1]:  # it goes out as soon as the answer is there
                self.messages[id_].is_sent = True

    def settled(self, id_: int, kind: OutcomeKind) -> None:
        message = self.messages[id_]
        message.is_sent = False
        if kind is not OutcomeKind.RETURNED:
            message.attempts += 1
        if kind in FINAL_KINDS:
            message.state = kind


def batch_of(number: int) -> AcceptBatch:
    """The batch that operation `number` accepts: always the same."""
    rng = random.Random(number)
    letters = [letter(number * 10 + i, rng.randrange(60, 1500)) for i in range(rng.randrange(1, 4))]
    whole = batch(
        number.to_bytes(16, "big"),
        letters=letters,
        recipients=rng.randrange(1, 4),
        domain=f"d{rng.randrange(5)}.example",
        keys=[f"{number}.{i}" for i in range(len(letters))] if rng.random() < 0.5 else (),
    )
    wish = Options(notify=Notify.FAILURE)
    return replace(
        whole, items=[item._replace(options=(wish,) * len(item.recipients)) for item in whole.items]
    )


def chunk_of(number: int) -> Any:
    return chunk(1, number, random.Random(number).randrange(1, 8))


def flat(ids: Any) -> list[int]:
    return [id_ for group in ids for id_ in group]


class Life:
    """One run of work on the spool; ends by being killed, or after ROUNDS rounds."""

    def __init__(self, path: Path, model: Model, seed: int, tell: Callable[[list[Any]], None]) -> None:
        self._path = path
        self._rng = random.Random(seed)
        self._tell = tell
        self._number = model.next_number
        self._charged = model.charged
        self._waiting: list[tuple[int, Future[Any], Callable[[Any], Any]]] = []
        self._batch_no = 0

    def run(self) -> None:
        spool = open_spool(self._path, segment_size=SEGMENT_SIZE, keep_names_ms=0, forget_every=1)
        keys = {id_of(key): key for key in due(spool)}
        spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
        flying: dict[int, int] = {}
        for _ in range(ROUNDS):
            self._accepts(spool)
            self._settle(spool, keys, flying)
            self._dispatch(spool, keys, flying)
            if self._rng.random() < 0.3:
                self._announce("state")
                self._ask(spool.put_state("other", os.urandom(8)), lambda _: None)
            for number, future, shape in self._waiting:
                try:
                    result = future.result(PATIENCE_S)
                except SpoolError as error:
                    self._tell(["refused", number, str(error)])
                    continue
                self._tell(["answer", number, shape(result)])
                for key in getattr(result, "due_keys", ()):
                    keys[id_of(key)] = key
            self._waiting.clear()
        spool.close()

    def _ask(self, future: "Future[Any]", shape: Callable[[Any], Any]) -> None:
        self._waiting.append((self._number, future, shape))
        self._number += 1

    def _announce(self, *operation: Any) -> int:
        self._tell(["ask", self._number, *operation])
        return self._number

    def _accepts(self, spool: Spool) -> None:
        for _ in range(self._rng.randrange(3)):
            if self._rng.random() < 0.7:
                number = self._announce("accept")
                self._ask(spool.accept(batch_of(number)), lambda result: flat(result.ids))
            else:
                number = self._announce("chunk")
                self._ask(spool.accept_chunk(chunk_of(number)), lambda result: flat(result.ids))

    def _settle(self, spool: Spool, keys: dict[int, bytes], flying: dict[int, int]) -> None:
        ids = self._rng.sample(sorted(flying), self._rng.randrange(len(flying) + 1))
        if not ids:
            return
        outcomes = [(id_, self._rng.choice(KINDS)) for id_ in ids]
        self._announce("settle", [(id_, int(kind)) for id_, kind in outcomes])
        settlements = [
            settlement(keys[id_], kind, batch_no=flying.pop(id_))._replace(
                remember=REMEMBER if kind is OutcomeKind.DELIVERED else None
            )
            for id_, kind in outcomes
        ]
        for id_, kind in outcomes:
            if kind is not OutcomeKind.RETURNED:
                del keys[id_]
        self._ask(spool.settle(settlements), lambda result: result.stale)

    def _dispatch(self, spool: Spool, keys: dict[int, bytes], flying: dict[int, int]) -> None:
        ready = sorted(set(keys) - set(flying))
        ids = self._rng.sample(ready, min(len(ready), self._rng.randrange(9)))
        if not ids:
            return
        self._batch_no += 1
        self._charged += len(ids)
        self._announce("dispatch", ids, self._charged)
        daily = {"daily/3/site": self._charged}
        self._ask(spool.dispatch(self._batch_no, packed(ids), daily), lambda _: None)
        flying.update(dict.fromkeys(ids, self._batch_no))


class Check:
    """Compares what a killed life has left with the model, and closes what hung in the air."""

    def __init__(self, path: Path, model: Model) -> None:
        self._path = path
        self._model = model
        self._problems: list[str] = []

    def run(self) -> list[str]:
        model = self._model
        spool = open_spool(self._path, segment_size=SEGMENT_SIZE, keep_names_ms=0, forget_every=1)
        perhaps_marked = self._unanswered_settlements(spool)
        for operation in model.asked.values():
            if operation[0] == "dispatch":
                perhaps_marked.update(operation[1])
        events: dict[int, list[int]] = {}
        for _, chunk_ in spool.read_outbox(1 << 30):
            for event in chunk_:
                events.setdefault(event[2], []).append(event[1])
        reader = spool.reader()
        for notice in spool.notices(1 << 30):
            self._expect(
                notice.message_id, "notice", model.messages[notice.message_id].state, OutcomeKind.BOUNCED
            )
            self._expect(notice.message_id, "its body", reader.body(notice.content)[:8], b"Subject:")
        for id_, message in model.messages.items():
            is_delivered = message.state is OutcomeKind.DELIVERED
            self._expect(id_, "sent row", spool.sent(id_) is not None, is_delivered)
            status = spool.status(id_)
            record = spool.message(id_)
            self._expect(id_, "state", None if status is None else status["state"], str(message.state))
            self._expect(id_, "record", record is not None, message.state is OutcomeKind.QUEUED)
            self._expect(id_, "events", len(events.get(id_, [])), message.attempts)
            if record is None:
                continue
            self._expect(id_, "attempts", record.attempts, message.attempts)
            marked = bool(record.flags & MAYBE_SENT)
            if message.is_sent:
                self._expect(id_, "mark", marked, True)
            elif marked and not message.is_marked and id_ not in perhaps_marked:
                self._problems.append(f"{id_:x}: marked as perhaps sent, but it never went out")
            message.is_marked = marked
            if len(record.content) == 4:
                expected = batch_of(message.batch)
                item = expected.items[message.place // len(expected.items[0].recipients)]
                body = expected.blob[item.offset : item.offset + item.length]
                self._expect(id_, "body", reader.body(record.content) == body, True)
            message.is_sent = (
                False  # what is sent from now on is known to be a possible duplicate, by the mark
            )
        charged = int.from_bytes(spool.get_state("daily/3/site") or b"", "big")
        if charged < model.charged:
            self._problems.append(f"charged {model.charged}, but on disk are {charged}")
        model.charged = charged
        for number, operation in model.asked.items():
            if operation[0] == "accept":
                model.answered(number, operation, flat(spool.accept(batch_of(number)).result(PATIENCE_S).ids))
        number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
        for asked, operation in model.asked.items():
            if operation[0] == "chunk":
                result = spool.accept_chunk(chunk_of(asked)).result(PATIENCE_S)
                model.answered(asked, operation, flat(result.ids))
        model.asked.clear()
        queued = {id_ for id_, message in model.messages.items() if message.state is OutcomeKind.QUEUED}
        found = [id_of(key) for key in due(spool)]
        self._expect(0, "campaign", number, 1)
        self._expect(0, "due", sorted(found), sorted(queued))
        reader.close()
        spool.close()
        report = audit(self._path)
        self._problems += report.problems
        self._expect(0, "accepted", report.accepted, len(model.messages))
        return self._problems

    def _unanswered_settlements(self, spool: Spool) -> set[int]:
        """A settlement without an answer is there for all of its messages, or for none.

        Returns messages that were only handed back, of which the record does not tell.
        """
        unknown = set()
        for operation in self._model.asked.values():
            if operation[0] != "settle":
                continue
            applied = set()
            for id_, kind in operation[1]:
                if kind != OutcomeKind.RETURNED:
                    record = spool.message(id_)
                    applied.add(record is None or record.attempts > self._model.messages[id_].attempts)
            if len(applied) == 2:
                self._problems.append(f"half of a settlement is on disk: {operation[1]}")
            for id_, kind in operation[1]:
                if not applied:
                    unknown.add(id_)
                    self._model.messages[id_].is_sent = False
                elif applied == {True}:
                    self._model.settled(id_, OutcomeKind(kind))
        return unknown

    def _expect(self, id_: int, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._problems.append(f"{id_:x}: {what} is {found!r}, not {expected!r}")


def in_child(work: Callable[[Callable[[list[Any]], None]], None]) -> tuple[int, list[list[Any]]]:
    """Run `work(tell)` in a fork; its wait status and what it told."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        packer = msgpack.Packer()
        try:
            work(lambda note: _write_all(write_end, packer.pack(note)))
        except BaseException:  # noqa: BLE001 - a fork must end here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    unpacker = msgpack.Unpacker()
    with os.fdopen(read_end, "rb") as pipe:
        unpacker.feed(pipe.read())
    _, status = os.waitpid(child, 0)
    return status, list(unpacker)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class Session:
    """Lives and checks, one after the other."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._rng = random.Random(seed)
        self._fault = DiskFault()
        self._fault.watch(root)
        self.kills: dict[str, int] = {}
        self.problems: list[str] = []
        self.messages = 0
        self._open_afresh()

    def _open_afresh(self) -> None:
        self._model = Model()
        self._path = self._root / f"spool{len(list(self._root.iterdir()))}"

    def kill_at(self, step: int, mode: Mode) -> bool:
        """One life that is killed at this step, and the check. False: it ended by itself before."""
        if self._rng.randrange(LIVES_PER_SPOOL) == 0:
            self._open_afresh()
        seed = self._rng.randrange(1 << 30)

        def live(tell: Callable[[list[Any]], None]) -> None:
            self._fault.arm(step, mode, seed=seed)
            Life(self._path, self._model, seed, tell).run()

        status, notes = in_child(live)
        for note in notes:
            self._model.hear(note)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        where = f"{mode.name} at step {step}, seed {seed}"
        if was_killed:
            self.kills[mode.name] = self.kills.get(mode.name, 0) + 1
        elif status:
            self.problems.append(f"{where}: the life failed with status {status}")
        checked, found = in_child(
            lambda tell: tell([Check(self._path, self._model).run(), dump(self._model)])
        )
        if checked:
            self.problems.append(f"{where}: the check failed")
            self._open_afresh()
            return was_killed
        [[problems, model]] = found
        self.problems += [f"{where}: {problem}" for problem in problems]
        self.messages += len(model[0]) - len(self._model.messages)
        self._model = load(model)
        return was_killed


def dump(model: Model) -> list[Any]:
    messages = [
        [id_, m.batch, m.place, m.attempts, int(m.state), m.is_sent, m.is_marked]
        for id_, m in model.messages.items()
    ]
    return [messages, model.charged, model.next_number]


def load(data: list[Any]) -> Model:
    model = Model(charged=data[1], next_number=data[2])
    for id_, number, place, attempts, state, is_sent, is_marked in data[0]:
        model.messages[id_] = Message(number, place, attempts, OutcomeKind(state), is_sent, is_marked)
    return model


def main() -> None:
    root, modes, seed, last_step = (
        Path(sys.argv[1]),
        sys.argv[2].split(","),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    session = Session(root, seed)
    for step in range(1, last_step + 1):
        for mode in modes:
            session.kill_at(step, Mode[mode])
    print(
        json.dumps({"kills": session.kills, "problems": session.problems[:20], "messages": session.messages})
    )


if __name__ == "__main__":
    main()
