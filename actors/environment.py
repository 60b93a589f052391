"""The environment that every process of a fleet shares; must be set before Ray is imported.

Ray reads its settings from the environment when its library loads. Its ports run code for whoever can reach them, so
they stay on the node's own address and demand the fleet's token (Ray's token authentication, 2.52 and later).
"""

import os
import secrets
from pathlib import Path

from engine.config.schema import FleetConfig

TOKEN_FILE = "ray-token"


def run_directory(config: FleetConfig) -> Path:
    """Where a fleet keeps its token, its Ray processes' logs and its process ids."""
    return Path(config.spool.directory).absolute().parent / "run"


def prepare(config: FleetConfig) -> None:
    """Set the environment of this process, and of those it starts; makes the token on first use."""
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = directory / TOKEN_FILE
    if not token.exists():
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    if root not in path.split(os.pathsep):
        path = os.pathsep.join(part for part in (root, path) if part)
    os.environ.update(
        {
            "PYTHONPATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
            "RAY_worker_niceness": "0",  # the default of 15 loses the CPU to any other process
            "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DEDUP_LOGS": "0",
        }
    )
