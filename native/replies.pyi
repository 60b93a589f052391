MAX_LINE: int
MAX_REPLY: int
MAX_TEXT: int

class MalformedReply(ValueError): ...

class ReplyParser:
    def feed(self, data: bytes) -> list[tuple[int, str, str]]: ...
