"""Provider profiles: limits that a mailbox provider publishes, or that other systems use with it.

A profile is a YAML file in this folder; each setting carries the text of its source. What a file does not say
it takes from default.yaml, which says everything. The fleet's `providers` section overrides single settings
and may add profiles of its own. An automation rule that does not match its own sample reply is refused when
the file is read.

`Profile.origins` tells for each setting where its value came from.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from engine.config.schema import ProviderConfig
from engine.config.shaping import AutomationRule
from engine.config.strict_yaml import read_yaml
from engine.config.types import Name, Section
from engine.config.units import Rate

DEFAULT = "default"
OPTIONAL = frozenset({"daily_cap", "rate_total", "daily_cap_total"})  # no limit where no profile says one


class ProfileError(Exception):
    """A profile file of the package is wrong: a fault of the build, not of the user."""


class Sourced(Section):
    """A setting with the place it was read at, and when."""

    value: Any
    source: str = Field(min_length=10)


class ProfileFile(Section):
    """One file of this folder. `settings` has the keys of `ProviderConfig`."""

    name: Name
    settings: dict[str, Sourced]


@dataclass(frozen=True, slots=True)
class Profile:
    """The limits towards one provider. Rates and daily caps, of one source and of all together, are None when there is
    none."""

    name: str
    mx_suffixes: tuple[str, ...]
    domains: tuple[str, ...]
    max_connections: int
    max_connections_total: int
    adaptive_connections: bool
    messages_per_connection: int
    max_recipients: int
    rate: Rate | None
    daily_cap: int | None
    rate_total: Rate | None
    daily_cap_total: int | None
    pipelining: bool
    chunking: bool
    idle_timeout_s: float
    transaction_timeout_s: float
    min_data_rate: int
    automation: tuple[AutomationRule, ...]
    origins: Mapping[str, str] = field(compare=False)


def read_profile(text: str, file: str) -> tuple[ProfileFile, ProviderConfig]:
    """Parse and check a profile file; raises ProfileError."""
    try:
        profile = ProfileFile.model_validate(read_yaml(text))
        settings = ProviderConfig.model_validate({key: s.value for key, s in profile.settings.items()})
    except (ValidationError, ValueError) as error:
        raise ProfileError(f"{file}: {error}") from error
    return profile, settings


@functools.cache
def _shipped() -> Mapping[str, tuple[ProfileFile, ProviderConfig]]:
    found = {}
    for entry in sorted(resources.files(__package__).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            profile, settings = read_profile(entry.read_text(encoding="utf-8"), entry.name)
            if entry.name != f"{profile.name}.yaml":
                raise ProfileError(f"{entry.name}: name is {profile.name!r}")
            found[profile.name] = profile, settings
    missing = set(ProviderConfig.model_fields) - OPTIONAL - set(found[DEFAULT][0].settings)
    if missing:
        raise ProfileError(f"default.yaml: missing are {', '.join(sorted(missing))}")
    return MappingProxyType(found)


def profile_names() -> frozenset[str]:
    """Names of the profiles that are shipped."""
    return frozenset(_shipped())


def load_profiles(overrides: Mapping[str, ProviderConfig]) -> dict[str, Profile]:
    """Every profile, the shipped ones and those that only `overrides` names, with the overrides applied."""
    names = sorted(profile_names() | set(overrides))
    return {name: _merge(name, overrides) for name in names}


def _merge(name: str, overrides: Mapping[str, ProviderConfig]) -> Profile:
    layers: list[tuple[str, str, ProfileFile | None, ProviderConfig]] = []
    for layer in (DEFAULT, name) if name != DEFAULT else (DEFAULT,):
        if layer in _shipped():
            layers.append((layer, f"engine/providers/{layer}.yaml", *_shipped()[layer]))
        if layer in overrides:
            layers.append((layer, f"fleet.yaml: providers.{layer}", None, overrides[layer]))
    values: dict[str, Any] = dict.fromkeys(OPTIONAL)
    origins: dict[str, str] = dict.fromkeys(OPTIONAL, "built-in default")
    for layer, origin, file, settings in layers:
        for key in settings.model_fields_set:
            value = getattr(settings, key)
            if value is None:
                continue
            if key in ("mx_suffixes", "domains") and layer != name:
                continue  # whose hosts these are is never inherited
            values[key] = value
            origins[key] = f"{origin} ({file.settings[key].source})" if file else f"{origin}.{key}"
    rate, rate_total = values["rate"], values["rate_total"]
    return Profile(
        name=name,
        mx_suffixes=values.get("mx_suffixes", ()),
        domains=values.get("domains", ()),
        max_connections=values["max_connections"],
        max_connections_total=values["max_connections_total"],
        adaptive_connections=values["adaptive_connections"],
        messages_per_connection=values["messages_per_connection"],
        max_recipients=values["max_recipients"],
        rate=rate if isinstance(rate, Rate) else None,
        daily_cap=values["daily_cap"],
        rate_total=rate_total if isinstance(rate_total, Rate) else None,
        daily_cap_total=values["daily_cap_total"],
        pipelining=values["pipelining"],
        chunking=values["chunking"],
        idle_timeout_s=values["idle_timeout"],
        transaction_timeout_s=values["transaction_timeout"],
        min_data_rate=values["min_data_rate"],
        automation=values["automation"],
        origins=MappingProxyType(origins),
    )
