"""Sinks of one personality, each on a port of its own, so that tests may run side by side."""

from pathlib import Path
from typing import Any

import yaml

from engine.sink.process import SinkProcess


def accepting_sink(folder: Path) -> SinkProcess:
    """To be used as a context manager; its one personality is `accept`, its log `folder/sink.log`."""
    return _sink(folder, {"accept": {}})


def slow_sink(folder: Path) -> SinkProcess:
    """The same; it is `slow`, and takes a second for each final reply."""
    return _sink(folder, {"slow": {"delay": {"final": "1s"}}})


def _sink(folder: Path, personalities: dict[str, Any]) -> SinkProcess:
    config = folder / "sink.yaml"
    config.write_text(yaml.safe_dump({"personalities": personalities}))
    return SinkProcess(config, folder / "sink.log")
