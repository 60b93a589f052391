"""How engaged a campaign's recipient is: coarse classes, in the order in which they are sent to."""

from enum import IntEnum


class Engagement(IntEnum):
    """`UNKNOWN`: the campaign says nothing about it."""

    UNKNOWN = 0
    ENGAGED = 1
    NORMAL = 2
    UNENGAGED = 3
