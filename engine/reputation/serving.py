"""Whose mail each source of a region may carry: streams, tenancy, and the classes of tenants.

A class that some source of a stream names in its `quality` goes over those that name it and no others; a class that
none names goes over the sources that name nothing. A tenant's own sources carry its mail whatever its class is.
Two things follow where there is no pool apart: a poor tenant with sources of its own does not overflow to the others'
(`lends`: only who has no other source in the stream), and a hybrid source whose own tenant is poor carries the others'
mail only if they have no other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.config.schema import SourceConfig
from engine.values.quality import Quality
from engine.values.stream import Stream

ALL_CLASSES = (1 << len(Stream) * len(Quality)) - 1


@dataclass(frozen=True, slots=True)
class Serving:
    """What a source does for others than its own tenant: one bit per stream and class (`bit_of`)."""

    serves: int
    lends: int


def bit_of(stream: int, quality: int) -> int:
    return 1 << (len(Quality) * stream + quality)


def find_serving(
    sources: Mapping[int, SourceConfig], quality_of: Callable[[str], Quality]
) -> dict[int, Serving]:
    """For every source of a region. `quality_of`: the class of a tenant that owns a hybrid source."""
    serves = dict.fromkeys(sources, 0)
    lends = dict.fromkeys(sources, 0)
    for stream in Stream:
        able = _for_others(sources, stream)
        for quality in Quality:
            named = [number for number in able if str(quality) in sources[number].quality]
            for number in named or [number for number in able if not sources[number].quality]:
                bit = bit_of(int(stream), quality)
                lends[number] |= bit
                kind, owner = sources[number].tenancy_of()
                is_burnt = kind == "hybrid" and quality_of(owner) is Quality.POOR
                if quality is Quality.POOR:
                    serves[number] |= bit if named else 0
                elif not is_burnt:
                    serves[number] |= bit
    return {number: Serving(serves[number], lends[number]) for number in sources}


def _for_others(sources: Mapping[int, SourceConfig], stream: Stream) -> list[int]:
    return [
        number
        for number, source in sources.items()
        if str(stream) in source.streams and source.tenancy.kind != "dedicated"
    ]
