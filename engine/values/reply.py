"""An SMTP reply as a value (RFC 5321 section 4.2, enhanced status RFC 3463)."""

from typing import NamedTuple


class Reply(NamedTuple):
    """`code` 0 means that no reply was received; `text` then says what happened instead.

    `enhanced` is "x.y.z" or "". `text` is one line: the lines of the reply joined by a space, repeated codes
    stripped, control characters replaced, at most 1,024 characters.
    """

    code: int
    enhanced: str
    text: str

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code or ""), self.enhanced, self.text) if part)
