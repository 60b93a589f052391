"""TSIG key files: both forms, and what is refused without its content being shown."""

import pickle
from pathlib import Path

import pytest

from engine.failover.tsig import TsigKeyError, read_tsig_key

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tsig.key"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    [
        f'key "fleet.example." {{\n\talgorithm hmac-sha256;\n\tsecret "{SECRET}";\n}};\n',
        f'# made by hand\nkey fleet.example {{ secret {SECRET}; algorithm "HMAC-SHA256"; }}',
        f"hmac-sha256:fleet.example:{SECRET}\n",
    ],
)
def test_forms(tmp_path: Path, text: str) -> None:
    key = read_tsig_key(write(tmp_path, text))
    assert (key.name, key.algorithm) == ("fleet.example.", "hmac-sha256")
    assert key.secret == b"secret-secret-secret-secret"[: len(key.secret)]
    assert SECRET not in repr(key)
    assert "secret-secret" not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither one"),
        (f"key a {{ secret {SECRET}; }};", "neither one"),
        (f"hmac-md5:a:{SECRET}", "algorithm: allowed are hmac-sha256"),
        (f"hmac-sha256:a:{SECRET[:-1]}", "not base64"),
        ("hmac-sha256:a:c2hvcnQ=", "less than 16 bytes"),
        ("x" * 20_000, "larger than"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TsigKeyError, match=words) as error:
        read_tsig_key(write(tmp_path, text))
    assert SECRET[:12] not in str(error.value)


def test_a_file_that_others_may_read_or_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TsigKeyError, match="chmod 600"):
        read_tsig_key(write(tmp_path, f"hmac-sha256:a:{SECRET}", 0o640))
    with pytest.raises(TsigKeyError, match="cannot be read"):
        read_tsig_key(tmp_path / "nothing")
