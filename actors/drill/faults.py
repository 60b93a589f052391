"""The faults by their scenarios."""

from typing import Any

from actors.drill.cuts import Cut, CutIn, CutOut
from actors.drill.freezes import Dns, RegionFreeze
from actors.drill.kills import HeadKill, PoolKill, RegionKill
from actors.drill.surroundings import DiskFull, SourceBlock

FAULTS: dict[str, Any] = {
    "pool-kill": PoolKill,
    "source-block": SourceBlock,
    "region-kill": RegionKill,
    "region-freeze": RegionFreeze,
    "dns": Dns,
    "disk-full": DiskFull,
    "partition": Cut,
    "partition-in": CutIn,
    "partition-out": CutOut,
    "head-kill": HeadKill,
}
