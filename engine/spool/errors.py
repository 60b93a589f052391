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
