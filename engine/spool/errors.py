"""What can go wrong with a spool."""


class SpoolError(Exception):
    """The spool cannot do what was asked; nothing was changed."""


class SpoolFull(SpoolError):
    """No room to accept more. Settling still works. `what` is "map" or "disk"; sizes in bytes."""

    def __init__(self, what: str, used: int, limit: int) -> None:
        super().__init__(what, used, limit)
        self.what = what
        self.used = used
        self.limit = limit

    def __str__(self) -> str:
        return f"spool full ({self.what}): {self.used} bytes, limit {self.limit}"


class SpoolInUse(SpoolError):
    """Another process has this spool open."""


class SpoolSuperseded(SpoolError):
    """Another incarnation has opened this spool: this one may not write any more."""


class SpoolFailed(SpoolError):
    """A commit failed and the spool could not be opened again: the outcome is unknown."""


class CampaignConflict(SpoolError):
    """A campaign or chunk of this name exists with other content."""
