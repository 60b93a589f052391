"""What can go wrong with a spool."""


class SpoolError(Exception):
    """The spool cannot do what was asked; nothing was changed."""


class SpoolFull(SpoolError):
    """No room for this; it may be tried again when there is. Sizes in bytes.

    `what` is "map": `used` of the index is above `limit`; or "disk": only `used` is free, and `limit` must stay free,
    to settle what is queued.
    """

    def __init__(self, what: str, used: int, limit: int) -> None:
        super().__init__(what, used, limit)
        self.what = what
        self.used = used
        self.limit = limit

    def __str__(self) -> str:
        if self.what == "disk":
            wanted = f"{self.limit} must stay free (spool.min_free, settling)"
            return f"spool full (disk): {self.used} bytes are free, {wanted}"
        return f"spool full (map): {self.used} bytes are used, {self.limit} may be (spool.map_size, spool.watermark)"


class SpoolInUse(SpoolError):
    """Another process has this spool open."""


class SpoolSuperseded(SpoolError):
    """Another incarnation has opened this spool: this one may not write any more."""


class SpoolFailed(SpoolError):
    """A commit failed and the spool could not be opened again: the outcome is unknown."""


class CampaignConflict(SpoolError):
    """A campaign or chunk of this name exists with other content."""


class CampaignUnknown(SpoolError):
    """There is no campaign of this number, or it is another one: this disk is not the one that gave the number."""


class CopiesInDoubt(SpoolError):
    """`replicas: 0`, and this region's messages may be another region's as well."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region

    def __str__(self) -> str:
        return (
            f"fleet.replicas: 0: region {self.region} has covered for others with `replicas: 1`, and was not stopped "
            "in order while every region was live: another region may own the same messages, and both would send them. "
            "If it has run with 1 until now, only 1 is allowed until all have returned: set it, `sendfleet up`, wait "
            "until `sendfleet status` shows every region live, `sendfleet down`, then set 0; if a region does not come "
            "back at all: `sendfleet forget-copies`. If it has run with 0 since, under an earlier release, do not set "
            "1: old copies of what was sent since could be sent again. `sendfleet forget-copies`, on each machine "
            "(docs/failover.md)"
        )
