"""TSIG key files (RFC 8945): as `tsig-keygen` writes them, or one line `ALGORITHM:NAME:SECRET`.

The file is read for every update, so a new key is used without a restart. Nothing of its content is in an error or in
a log.
"""

import base64
import binascii
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

MAX_FILE_BYTES = 16 << 10
ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
_STATEMENT = re.compile(r'key\s+"?([^"\s{};]+)"?\s*\{([^{}]*)\}\s*;?')
_LINE = re.compile(r"([A-Za-z0-9-]+):([^:\s]+):([A-Za-z0-9+/=]+)")
_MIN_SECRET_BYTES = 16


class TsigKeyError(ValueError):
    """The key file cannot be used; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class TsigKey:
    name: str
    algorithm: str
    secret: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


def read_tsig_key(path: Path) -> TsigKey:
    """Raises TsigKeyError; OSError becomes one too."""
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TsigKeyError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TsigKeyError(f"{path}: others may read it (mode {mode & 0o777:o}): chmod 600")
    if len(data) > MAX_FILE_BYTES:
        raise TsigKeyError(f"{path}: larger than a key file can be ({MAX_FILE_BYTES} bytes)")
    text = "\n".join(
        line for line in data.decode("ascii", "replace").splitlines() if line.lstrip()[:1] != "#"
    )
    name, algorithm, secret = _fields(text.strip(), path)
    if algorithm.lower() not in ALGORITHMS:
        raise TsigKeyError(f"{path}: algorithm: allowed are {', '.join(ALGORITHMS)}")
    try:
        octets = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        raise TsigKeyError(f"{path}: the secret is not base64") from None
    if len(octets) < _MIN_SECRET_BYTES:
        raise TsigKeyError(f"{path}: the secret has less than {_MIN_SECRET_BYTES} bytes")
    return TsigKey(name.rstrip(".") + ".", algorithm.lower(), octets)


def _fields(text: str, path: Path) -> tuple[str, str, str]:
    line = _LINE.fullmatch(text)
    if line is not None:
        return line[2], line[1], line[3]
    statement = _STATEMENT.fullmatch(text)
    if statement is not None:
        options = dict(re.findall(r'(algorithm|secret)\s+"?([^"\s;]+)"?\s*;', statement[2]))
        if len(options) == 2:
            return statement[1], options["algorithm"], options["secret"]
    raise TsigKeyError(
        f"{path}: neither one `key NAME {{ algorithm ...; secret ...; }};` nor ALGORITHM:NAME:SECRET"
    )
