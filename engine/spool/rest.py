"""Whether a spool that has kept copies of other regions' messages may go on without: `fleet.replicas` from 1 back to 0.

A region that was adopted from does not know it, so no disk can tell alone. Each region writes down, when it is stopped
in order and knows of nobody who is dead or returning, the number of that stop. Where all have the same number every
message has one owner, and they may go on without copies (ADR 0024).

failover  `rest` -> number of the stop at which every region was live, as far as this one knew
          `alone` -> True: it has gone on without copies since it kept any
"""

from typing import Any

import msgpack

from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import pack
from engine.spool.standby import SELF

REST = b"rest"
ALONE = b"alone"


def read_rest(env: Environment, txn: Any) -> int | None:
    """None: it has kept no copies, or has gone on without them since. 0: it was not stopped at rest. Else the number
    of that stop."""
    if txn.get(SELF, db=env.db["failover"]) is None or txn.get(ALONE, db=env.db["failover"]):
        return None
    stored = txn.get(REST, db=env.db["failover"])
    return int(msgpack.unpackb(stored)) if stored else 0


def has_kept(env: Environment, txn: Any) -> bool:
    """Whether it ever kept copies, or had its own elsewhere, on this disk."""
    return any(txn.get(key, db=env.db["failover"]) is not None for key in (SELF, ALONE))


def save_rest(draft: Draft, number: int) -> None:
    """It is stopped, and every region is live as far as it knows."""
    draft.txn.put(REST, pack(number), db=draft.env.db["failover"])


def end_rest(draft: Draft) -> None:
    """From now on others may adopt what is here."""
    draft.txn.delete(REST, db=draft.env.db["failover"])
    draft.txn.delete(ALONE, db=draft.env.db["failover"])


def begin_alone(draft: Draft) -> None:
    """What is here is this region's alone."""
    draft.txn.delete(REST, db=draft.env.db["failover"])
    draft.txn.put(ALONE, pack(True), db=draft.env.db["failover"])
