"""Lists of mailboxes as they stand in From, To, Cc and Bcc (RFC 5322 section 3.4), read strictly.

The parsers of the standard library differ between versions in what they make of malformed lists
(CVE-2023-27043), so a crafted field could name a recipient to one program and another to the next. Here
anything ambiguous is an error. Understood are quoted names, comments, groups, and unquoted names with any
other character, brackets too, which much software writes there; not route addresses.
"""

from engine.values.address import AddressError

MAX_COMMENT_DEPTH = 8


def split_mailboxes(text: str) -> list[tuple[str, str]]:
    """(name, address) of each mailbox; the address is not checked further. Raises AddressError."""
    return _Scanner(text).mailboxes()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found: list[tuple[str, str]] = []
        self._is_group = False
        self._begin()

    def _begin(self) -> None:
        self._raw: list[str] = []  # as written, without comments
        self._name: list[str] = []  # without quotes
        self._angle: str | None = None

    def mailboxes(self) -> list[tuple[str, str]]:
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character == '"':
                self._quoted()
            elif character == "(":
                self._comment()
            elif character == "<":
                self._angle_address()
            elif character == ",":
                self._end()
            elif character == ":":
                if self._is_group or self._angle is not None:
                    raise AddressError("a colon that begins no group")
                self._is_group = True
                self._begin()
            elif character == ";":
                if not self._is_group:
                    raise AddressError("a semicolon that ends no group")
                self._end()
                self._is_group = False
            elif character in ">)\\":
                raise AddressError(f"{character!r} is not allowed outside double quotes")
            else:
                self._add(character, character)
                self._at += 1
                continue
            if character in ",:;":
                self._at += 1
        if self._is_group:
            raise AddressError("a group without its semicolon")
        self._end()
        return self._found

    def _add(self, raw: str, name: str) -> None:
        if self._angle is not None and raw.strip():
            raise AddressError("something stands behind the angle brackets")
        self._raw.append(raw)
        self._name.append(name)

    def _quoted(self) -> None:
        start = self._at
        value: list[str] = []
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == '"':
                self._add(self._text[start : self._at], "".join(value))
                return
            if character == "\\" and self._at < len(self._text):
                character = self._text[self._at]
                self._at += 1
            value.append(character)
        raise AddressError("a double quote is not closed")

    def _comment(self) -> None:
        depth = 0
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == "\\":
                self._at += 1
            elif character == "(":
                depth += 1
                if depth > MAX_COMMENT_DEPTH:
                    break
            elif character == ")":
                depth -= 1
                if not depth:
                    return
        raise AddressError("a comment is not closed")

    def _angle_address(self) -> None:
        if self._angle is not None:
            raise AddressError("two addresses without a comma between them")
        start = self._at + 1
        is_quoted = False
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "\\" and is_quoted:
                self._at += 1
            elif character == '"':
                is_quoted = not is_quoted
            elif not is_quoted and character == "<":
                break
            elif not is_quoted and character == ">":
                self._angle = self._text[start : self._at].strip()
                self._at += 1
                return
            self._at += 1
        raise AddressError("an angle bracket is not closed")

    def _end(self) -> None:
        raw = "".join(self._raw).strip()
        name = " ".join("".join(self._name).split())
        if self._angle is not None:
            self._found.append((name, self._angle))
        elif raw:
            self._found.append(("", raw))
        self._begin()
