"""Files with token keys: what is refused, what a change does, and that no key can leave."""

import logging
import pickle
from pathlib import Path

import pytest

from engine.bounces.key_files import (
    KeyFileError,
    add_key,
    drop_last_key,
    read_keys,
    use_last_key,
    write_key,
)
from engine.bounces.tokens import TokenKeys
from engine.config.bounces import TokenKey, TokensConfig


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def config(*files: Path) -> TokensConfig:
    return TokensConfig(keys=tuple(TokenKey(id=i, file=file) for i, file in enumerate(files)))


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_key(path)
    keys = TokenKeys.read(config(path))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(keys)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", 0o600),
        ("{key}00", 0o600),
        ("{half}", 0o600),
        ("{key}\n{key}\n", 0o600),
        ("{key} x\n", 0o600),
        ("é" * 32, 0o600),
        ("{key}\n" + "00" * 4000, 0o600),
        ("{key}", 0o644),
        ("{key}", 0o602),
    ],
)
def test_what_is_no_key_file(tmp_path: Path, text: str, mode: int) -> None:
    path, key = tmp_path / "key", "ab" * 32
    path.write_text(text.format(key=key, half=key[:32]))
    path.chmod(mode)
    for broken in (path, tmp_path / "missing", tmp_path):
        with pytest.raises(KeyFileError, match=str(broken)) as raised:
            TokenKeys.read(config(broken))
        assert key[:16] not in str(raised.value)


def test_a_key_is_changed_in_three_steps(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path)
    path.chmod(0o640)
    time = Time()
    keys, late = (TokenKeys.read(config(path), time) for _ in range(2))
    old = keys.sign(b"p", b"x")

    def step() -> None:
        time.now += 11

    add_key(path)
    assert keys.sign(b"p", b"x") == old
    step()
    assert keys.sign(b"p", b"x") == old, "the first key still signs"
    assert late.verify(b"p", old) == b"x"  # this node has read the new key, too
    use_last_key(path)
    assert keys.sign(b"p", b"x") == old, "not looked at yet"
    step()
    new = keys.sign(b"p", b"x")
    assert new != old
    assert [keys.verify(b"p", token) for token in (new, old)] == [b"x", b"x"]
    time.now -= 11  # a node that has not read it yet knows the key
    assert late.verify(b"p", new) == b"x"
    time.now += 11
    drop_last_key(path)
    step()
    assert [keys.verify(b"p", token) for token in (new, old)] == [b"x", None]
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
    with pytest.raises(KeyFileError, match="one key only"):
        drop_last_key(path)
    for _ in range(15):
        add_key(path)
    with pytest.raises(KeyFileError, match="drop one first"):
        add_key(path)
    assert len(read_keys(path)) == 16


def test_a_file_that_breaks_leaves_its_keys_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    write_key(first)
    write_key(second)
    time = Time()
    keys = TokenKeys.read(config(first, second), time)
    token = keys.sign(b"p", b"x")
    text = first.read_text()
    with caplog.at_level(logging.INFO):
        for broken in (text[:20], ""):
            first.write_text(broken)
            for _ in range(3):
                time.now += 11
                assert keys.verify(b"p", token) == b"x"
                assert keys.sign(b"p", b"x") == token
        first.unlink()
        time.now += 11
        assert keys.verify(b"p", token) == b"x"
        write_key(first)
        time.now += 11
        assert keys.verify(b"p", token) is None, "it was replaced"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "INFO"]
    assert text[:16] not in caplog.text
