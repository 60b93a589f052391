"""The examples for Prometheus and Grafana name metrics and labels that exist, and every alert has its rule."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.alerts.rules import RULES, entry_of
from engine.config.alerts import AlertsConfig
from engine.config.metrics import MetricsConfig
from engine.config.units import parse_duration
from engine.metrics.catalogue import CATALOGUE, label_names

EXAMPLES = Path(__file__).parents[3] / "examples"
RULES_FILE = EXAMPLES / "prometheus-rules.yaml"
DASHBOARD = EXAMPLES / "grafana-dashboard.json"
BY_NAME = {metric.prometheus: metric for metric in CATALOGUE.values()}
SELECTED = re.compile(r"\b([a-z][a-z0-9_]*)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)(?:=~|!~|!=|=)\"")
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")
PREFIXES = ("sendfleet_", "process_", "system_")


def rules() -> list[dict[str, Any]]:
    return list(yaml.safe_load(RULES_FILE.read_text("utf-8"))["groups"][0]["rules"])


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + shown


def test_the_guide_configures_what_the_rules_look_for() -> None:
    """Its blocks of YAML: that of the fleet, and those of Prometheus, by the job's name that the rules have."""
    guide = (EXAMPLES.parent / "docs" / "monitoring.md").read_text("utf-8")
    fleet, local, remote = (
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    )
    (job,), (other,) = local["scrape_configs"], remote
    assert f'up{{job="{job["job_name"]}"}}' in {rule["expr"].partition(" ==")[0] for rule in rules()}
    assert other["job_name"] == job["job_name"]
    assert job["static_configs"][0]["targets"] == [fleet["metrics"]["listen"]["eu"]]
    assert MetricsConfig.model_validate(fleet["metrics"]).listen


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_what_there_is(expression: str) -> None:
    names = [name for name, _ in SELECTED.findall(expression) if name.startswith(PREFIXES)]
    assert names or expression.startswith("up{")
    possible = set()
    for name, labels in SELECTED.findall(expression):
        if name.startswith(PREFIXES):
            assert name in BY_NAME, f"{name}: no such metric"
            known = {label.replace(".", "_") for label in label_names(BY_NAME[name])}
            assert set(LABEL.findall(labels)) <= known
            possible |= known
    for group in GROUPED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= possible


def test_every_alert_of_the_fleet_is_there_with_its_defaults() -> None:
    found = {rule["alert"]: rule for rule in rules()}
    for rule in RULES:
        name = "Sendfleet" + "".join(part.capitalize() for part in rule.name.split("_"))
        entry = entry_of(AlertsConfig(), rule)
        assert found[name]["labels"]["severity"] == entry.severity
        assert parse_duration(found[name]["for"]) == entry.after
        above = getattr(entry, "above", None)
        if above is not None:
            assert f"= {above:g}" in found[name]["expr"]
        named = set(re.findall(r"[a-z_]+", found[name]["expr"]))
        assert {CATALOGUE[metric].prometheus for metric in rule.metrics} & named
    assert set(found) == {"SendfleetDown"} | {
        "Sendfleet" + "".join(part.capitalize() for part in rule.name.split("_")) for rule in RULES
    }


def test_texts_use_labels_that_their_expression_has() -> None:
    for rule in rules():
        expression = rule["expr"]
        groups = GROUPED.findall(expression)
        for label in re.findall(r"\$labels\.([a-z_]+)", rule["annotations"]["summary"]):
            if groups:
                assert any(label in group for group in groups), (rule["alert"], label)
            else:
                metrics = [BY_NAME[name] for name, _ in SELECTED.findall(expression) if name in BY_NAME]
                assert label == "instance" or any(label in label_names(metric) for metric in metrics)
