"""Write docs/configuration.md from the schema. A test compares; run this after a change of the schema."""

import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.config.load import load_fleet
from engine.config.schema import FleetConfig, ProviderConfig, Tenancy

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Made by tools/write_configuration_docs.py from engine/config/schema.py: change it there. -->

A fleet is described by one file, `fleet.yaml`; `examples/fleet.yaml` is a complete one.

`sendfleet config check` reports everything that is wrong at once, each with its path, the value and what is
allowed; an unknown key is an error. `sendfleet config explain --recipient a@b --stream marketing --source IP`
prints each effective value and where it comes from.

Units are written, and a number without one is refused:

| kind | units | example |
|---|---|---|
| duration | `ms` `s` `m` `h` `d` | `5m` |
| size | `B` `KiB` `MiB` `GiB` `TiB`, decimal `KB` `MB` `GB` `TB` | `25MiB` |
| rate | a count per `s`, `min`, `h`, `day`, or per a number of them | `100/min`, `5/10s` |

The limits of mailbox providers are in `engine/providers/*.yaml`, each with its source. The section
`providers` overrides single settings; a name that is not among them makes a profile of
its own, from `default`.
"""

SUFFIXES = {"": "", "A list of:": "[]", "A mapping from a name to:": ".NAME"}


def write() -> str:
    parts = [HEAD]
    for name, field in FleetConfig.model_fields.items():
        parts.append(f"\n## {name}\n\n{field.description}\n")
        model, shape = _model(field.annotation)
        assert model is not None, name
        if shape:
            parts.append(f"{shape}\n")
        parts += _tables(
            model, name + {"A list of:": "[]", "A mapping from a name to:": ".NAME"}.get(shape, "")
        )
    return "\n".join(parts).rstrip("\n") + "\n"


def _tables(model: type[BaseModel], path: str) -> list[str]:
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        inner, shape = _model(field.annotation)
        if inner is not None and inner is not Tenancy:
            below = f"{path}.{name}" + ("[]" if shape == "A list of:" else "")
            nested += ["", f"### {below}", "", *_tables(inner, below)]
        kind = _kind(field, inner, shape).replace("|", "\\|")
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{path}.{name}` | {kind} | {_default(model, name, field)} | {meaning} |")
    return [*rows, *nested]


def _model(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model inside an annotation, and in what it is."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    if origin is typing.Annotated:
        return _model(arguments[0])
    if origin in (Union, types.UnionType):
        return next((found for found in map(_model, arguments) if found[0] is not None), (None, ""))
    if origin is tuple:
        return _model(arguments[0])[0], "A list of:"
    if origin is dict:
        return _model(arguments[1])[0], "A mapping from a name to:"
    return None, ""


def _kind(field: FieldInfo, inner: type[BaseModel] | None, shape: str) -> str:
    if inner is Tenancy:
        return "tenancy"
    if inner is not None:
        return "list, see below" if shape else "see below"
    return _text(field.annotation, list(field.metadata))


def _text(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    for item in metadata:
        title = getattr(item, "json_schema", None)
        if isinstance(title, dict):
            return str(title["title"])
    if origin is typing.Annotated:
        return _text(arguments[0], list(arguments[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join(_text(a, []) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"list of {_text(arguments[0], [])}"
    if origin is dict:
        return f"mapping from a name to a {_text(arguments[1], [])}"
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    names = {str: "text", int: "integer", float: "number", bool: "yes or no", Path: "path"}
    return names.get(annotation, str(annotation))


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "derived"
    if model is ProviderConfig:
        return "the profile's"
    if field.default is None or field.default == () or field.default == {}:
        return "none"
    if isinstance(field.default, Tenancy):
        return "`shared`"
    if isinstance(field.default, BaseModel):
        return "as below"
    return f"`{_written(model, name, field.default)}`"


def _written(model: type[BaseModel], name: str, value: Any) -> Any:
    """The default as it would stand in the file."""
    written = model.model_construct(**{name: value}).model_dump(mode="json", include={name})[name]
    return f"{written:g}" if isinstance(written, float) else written


if __name__ == "__main__":
    load_fleet(ROOT / "examples" / "fleet.yaml")
    TARGET.write_text(write(), encoding="utf-8")
