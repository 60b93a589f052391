"""Tag lists: `tag=value; tag=value`, of DKIM keys (RFC 6376 section 3.2), DMARC, MTA-STS, TLS-RPT and BIMI."""

import re

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class TagError(ValueError):
    """The text is not a list of tags; the message says where."""


def parse_tags(text: str) -> dict[str, str]:
    """Tags in their order, white space around names and values removed; raises TagError. A tag stands once."""
    tags: dict[str, str] = {}
    parts = text.split(";")
    for number, part in enumerate(parts):
        if not part.strip():
            if number == len(parts) - 1:
                continue
            raise TagError("an empty tag between two semicolons")
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not _NAME.fullmatch(name):
            raise TagError(f"{part.strip()[:40]!r} is not tag=value")
        if name in tags:
            raise TagError(f"the tag {name}= stands twice")
        tags[name] = value.strip()
    return tags


def is_version(text: str, version: str) -> bool:
    """Whether a TXT record is of the kind whose first tag is `v=VERSION`."""
    head, equals, rest = text.partition("=")
    return bool(equals) and head.strip() == "v" and rest.partition(";")[0].strip() == version
