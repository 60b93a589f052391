"""Read fleet.yaml: everything that is wrong with it is reported at once, with path and what is allowed.

Diagnostics: `ConfigError.problems`. A key given twice is an error too (YAML libraries keep the last one
silently). What is allowed but probably not meant: `engine.config.checks.find_gaps`.
"""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from pydantic import BaseModel, ValidationError

from engine.config.checks import Problem, classes_without_sources, cross_check
from engine.config.schema import FleetConfig
from engine.config.strict_yaml import YamlError, read_yaml
from engine.providers.profiles import profile_names
from engine.warmup.tables import shipped


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every reason."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(file, problems)
        self.file = file
        self.problems = problems

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.file}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def load_fleet(path: str | Path) -> FleetConfig:
    """Read and check a fleet.yaml; raises ConfigError."""
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        reason = "there is no such file: name the fleet's with --fleet, or in the variable SENDFLEET_FLEET"
        raise ConfigError(name, (Problem("", name, reason),)) from error
    except OSError as error:
        raise ConfigError(name, (Problem("", name, f"cannot be read: {error.strerror}"),)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(name, (Problem("", name, f"cannot be read: {error}"),)) from error
    try:
        data = read_yaml(text)
    except YamlError as error:
        raise ConfigError(name, (Problem(error.place, name, f"not YAML: {error.message}"),)) from error
    return parse_fleet(data, name)


def parse_fleet(data: object, file: str = "fleet.yaml") -> FleetConfig:
    """Check plain data; raises ConfigError with the problems of schema and cross-checks together."""
    if not isinstance(data, Mapping):
        raise ConfigError(file, (Problem("", data, "allowed is a mapping with regions, sources, ..."),))
    problems: list[Problem] = []
    config: FleetConfig | None = None
    try:
        config = FleetConfig.model_validate(data)
    except ValidationError as error:
        problems += translate(error, FleetConfig)
    problems += cross_check(data, profile_names(), shipped())
    if config is not None:
        problems += classes_without_sources(config)
    if problems or config is None:
        raise ConfigError(file, tuple(problems))
    return config


def translate(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """pydantic's errors as problems; an unknown key gets the nearest known one."""
    problems = []
    for entry in error.errors(include_url=False):
        kind = entry["type"]
        location = entry["loc"]
        value: object = entry["input"]
        message = entry["msg"].removeprefix("Value error, ")
        if kind == "default_factory_not_called":
            continue  # the default depends on a value that is wrong itself, and reported
        if kind == "too_short":
            if value:
                continue  # the entries that are wrong themselves are reported, and not counted
            message = "allowed is at least one entry"
        elif kind == "extra_forbidden":
            value = location[-1]
            message = _unknown_key(str(location[-1]), _model_at(model, location[:-1]))
        elif kind == "missing":
            value = None
            message = "required"
        elif kind == "literal_error":
            message = f"allowed are {entry['ctx']['expected']}"
        elif kind in ("model_type", "dict_type"):
            message = "allowed is a mapping"
        elif kind in ("tuple_type", "list_type"):
            message = "allowed is a list"
        elif kind != "value_error":
            message = message.replace("Input should be", "allowed is", 1)
        elif isinstance(value, Mapping):  # a check between fields says which one it is about
            field, separator, rest = message.partition(": ")
            if separator and field in value:
                location, value, message = (*location, field), value[field], rest
        problems.append(Problem(_path(location), value, message))
    return problems


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        if part == "[key]":
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return "unknown key"
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else "allowed are"
    return f"unknown key; {hint}" + ("" if near else " " + ", ".join(known))


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model whose keys stand at a location: through lists and mappings."""
    kind: Any = model
    for part in location:
        kind = _bare(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            if field is None:
                return None
            kind = field.annotation
        else:
            arguments = typing.get_args(kind)
            kind = arguments[1] if typing.get_origin(kind) is dict else arguments[0] if arguments else None
    kind = _bare(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _bare(kind: Any) -> Any:
    """Without Annotated and without `| None`."""
    while True:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif origin in (Union, types.UnionType):
            kind = next(argument for argument in typing.get_args(kind) if argument is not type(None))
        else:
            return kind
