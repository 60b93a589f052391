"""The warm-up tables: the shipped ones of this folder, and those of fleet.yaml."""

import functools
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from pydantic import ValidationError

from engine.config.strict_yaml import read_yaml
from engine.config.warmup import WarmupTable


class TableError(Exception):
    """A table of the package is wrong: a fault of the build, not of the user."""


@functools.cache
def shipped() -> Mapping[str, WarmupTable]:
    """The tables of this folder by name."""
    found = {}
    folder = resources.files(__package__) / "tables"
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            try:
                table = WarmupTable.model_validate(read_yaml(entry.read_text(encoding="utf-8")))
            except (ValidationError, ValueError) as error:
                raise TableError(f"{entry.name}: {error}") from error
            found[entry.name.removesuffix(".yaml")] = table
    return MappingProxyType(found)


def load_tables(custom: Mapping[str, WarmupTable]) -> dict[str, WarmupTable]:
    """Every table by name; one of fleet.yaml replaces a shipped one of its name."""
    return {**shipped(), **custom}
