"""Messages of the failover protocol on their way from one region's actor to another's.

Ray packs bytes as they are, and objects with cloudpickle, in Python: that took more time than all else that is done
with a message. What is packed here is Ray's own trust: whoever may call an actor may have it run anything.
"""

import pickle
from collections.abc import Sequence

from engine.failover.messages import Message


def packed(messages: Sequence[Message]) -> bytes:
    return pickle.dumps(tuple(messages), pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> tuple[Message, ...]:
    messages: tuple[Message, ...] = pickle.loads(data)
    return messages
