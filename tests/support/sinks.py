"""A sink that accepts everything on a port of its own, so that tests may run side by side."""

from pathlib import Path

import yaml

from engine.sink.process import SinkProcess


def accepting_sink(folder: Path) -> SinkProcess:
    """To be used as a context manager; its one personality is `accept`, its log `folder/sink.log`."""
    config = folder / "sink.yaml"
    config.write_text(yaml.safe_dump({"personalities": {"accept": {}}}))
    return SinkProcess(config, folder / "sink.log")
