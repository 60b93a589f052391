"""Files with the keys of tokens: one key per line in hexadecimal; the first one signs, all of them are good.

A file is looked at again every few seconds (`tokens.reload`), so a key can be changed without a restart: a new one is
added at the end and copied to every node, then moved to the front, and the old one taken out when its tokens have
expired. A file that cannot be used at the start is an error. Later, half written perhaps, it leaves the keys before it
in use, and is logged once. A file that every user of the machine may read is refused. No key is ever in a log, an error
or a pickle.
"""

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

KEY_BYTES = 32
MAX_KEYS = 16
_MAX_FILE = MAX_KEYS * (2 * KEY_BYTES + 2)


class KeyFileError(ValueError):
    """A key file cannot be used; says which and why, never what is in it."""


class KeyFile:
    """One file, and the keys that were last read from it."""

    def __init__(self, path: Path) -> None:
        """KeyFileError."""
        self._path = path
        self._stamp = _stamp(path)
        self._failure = ""
        self.keys = read_keys(path)

    def refresh(self) -> bool:
        """Look at the file again; whether there are other keys in it."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        try:
            keys = read_keys(self._path)
        except KeyFileError as error:
            if str(error) != self._failure:
                log.error("%s; the keys read before stay in use", error)
            self._failure = str(error)
            return False
        self._failure = ""
        self._stamp = stamp
        if keys == self.keys:
            return False
        log.info("token key %s: read again, keys in it: %d", self._path, len(keys))
        self.keys = keys
        return True


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in a file, the one that signs first; KeyFileError."""
    try:
        # not waiting for a writer, if it is a pipe
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise KeyFileError(f"token key {path}: not a file")
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                raise KeyFileError(
                    f"token key {path}: mode {stat.S_IMODE(mode):04o}: allowed is a file that not every user can read"
                )
            data = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"token key {path}: {error.strerror}") from None
    try:
        keys = tuple(bytes.fromhex(line) for line in data.decode("ascii").split())
    except ValueError:
        keys = ()
    if not 0 < len(keys) <= MAX_KEYS or any(len(key) != KEY_BYTES for key in keys) or len(data) > _MAX_FILE:
        raise KeyFileError(
            f"token key {path}: allowed are 1 to {MAX_KEYS} lines of {2 * KEY_BYTES} hexadecimal digits, and nothing "
            "else"
        )
    if len(set(keys)) != len(keys):
        raise KeyFileError(f"token key {path}: allowed is each key once")
    return keys


def write_key(path: Path) -> None:
    """Make a new file with one key, readable by its owner only. FileExistsError rather than replacing one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_text((os.urandom(KEY_BYTES),)))
        file.flush()
        os.fsync(file.fileno())


def add_key(path: Path) -> None:
    """Put a new key at the end: it is good, and signs nothing yet. KeyFileError, OSError."""
    keys = read_keys(path)
    if len(keys) == MAX_KEYS:
        raise KeyFileError(f"token key {path}: has {MAX_KEYS} keys, and no more are allowed: drop one first")
    _replace(path, (*keys, os.urandom(KEY_BYTES)))


def use_last_key(path: Path) -> None:
    """Have the last key sign. KeyFileError, OSError."""
    keys = read_keys(path)
    if len(keys) == 1:
        raise KeyFileError(f"token key {path}: has one key only, which signs: `add-key` makes another")
    _replace(path, (keys[-1], *keys[:-1]))


def drop_last_key(path: Path) -> None:
    """Take the last key out: its tokens are good no more. KeyFileError, OSError."""
    keys = read_keys(path)
    if len(keys) == 1:
        raise KeyFileError(f"token key {path}: has one key only, which signs")
    _replace(path, keys[:-1])


def _text(keys: tuple[bytes, ...]) -> str:
    return "".join([f"{key.hex()}\n" for key in keys])


def _replace(path: Path, keys: tuple[bytes, ...]) -> None:
    """The whole file or none of it, with owner and mode as they were."""
    status = path.stat()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(_text(keys))
            file.flush()
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
