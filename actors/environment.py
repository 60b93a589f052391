"""The environment that every process of a fleet shares; must be set before Ray is imported.

Ray reads its settings from the environment when its library loads. Its ports run code for whoever can reach them, so
they stay on the node's own address and demand the fleet's token (Ray's token authentication, 2.52 and later).
"""

import os
import secrets
import site
import tempfile
from contextlib import suppress
from pathlib import Path

from engine.config.schema import FleetConfig

TOKEN_FILE = "ray-token"
ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray stays on 127.0.0.1; see actors/local_node.py

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_worker_niceness": "0",  # the default of 15 loses the CPU to any other process
    "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "2592000",  # nodes outlive their head for so long, not for a minute
}

# Of the head's node only: its state is on disk, so that it can return to the nodes that are there (ADR 0031).
HEAD_STORAGE = {"RAY_gcs_storage": "rocksdb"}
HEAD_STORAGE_PATH = "RAY_gcs_storage_path"


def run_directory(config: FleetConfig) -> Path:
    """Where a fleet keeps its token, its Ray processes' logs and its process ids."""
    return Path(config.spool.directory).absolute().parent / "run"


def prepare(config: FleetConfig) -> None:
    """Set the environment of this process, and of those it starts; makes the token on first use."""
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = directory / TOKEN_FILE
    if not token.exists():
        _make_token(token)
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in (*path, *site.getsitepackages()):  # a source tree: Ray's processes must find it, too
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (root, *path) if part)
    if config.ray.address is None:
        os.environ[ONLY_LOOPBACK] = "0"
    os.environ.update(SETTINGS)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _make_token(path: Path) -> None:
    """Whole or not at all; of several commands that make it at once the first wins."""
    descriptor, draft = tempfile.mkstemp(prefix=TOKEN_FILE, dir=path.parent)  # readable by its owner only
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    with suppress(FileExistsError):
        os.link(draft, path)
    os.unlink(draft)
