def canonicalise(message: bytes, stuff: bool) -> bytes: ...

HAS_DATE: int
HAS_MESSAGE_ID: int
HEAD_8BIT: int
BODY_8BIT: int
LONG_LINE: int
NAME_SPACE: int

def survey(message: bytes) -> tuple[int, int, int]: ...
