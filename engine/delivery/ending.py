"""Ends the sessions of a pool: what has not begun goes back, what has begun is finished.

A session that waits for the answer to a complete message is never killed before its timeout (RFC 1047): the peer may
have taken the message, and nobody would know.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from engine.delivery.lane import Lane

LOOK_S = 0.01


async def end_sessions(
    lanes: Mapping[tuple[int, str, Any], Lane], *, deadline_s: float, look_s: float = LOOK_S
) -> None:
    """Returns when no session is left. Beyond the deadline waits only for final replies; looks every `look_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    for lane in lanes.values():
        lane.give_back_all()
        for session in list(lane.sessions):
            session.machine.quit()
    while True:
        late = loop.time() >= deadline
        if late:
            _end_hopeless(lanes)
        if not any(lane.sessions or (lane.opening and not late) for lane in lanes.values()):
            break
        await asyncio.sleep(look_s)


def _end_hopeless(lanes: Mapping[tuple[int, str, Any], Lane]) -> None:
    """End what does not wait for the answer to a complete message."""
    for lane in lanes.values():
        for session in list(lane.sessions):
            if not session.machine.is_body_sent:
                session.machine.abort()
