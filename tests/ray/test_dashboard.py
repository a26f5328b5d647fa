"""The Grafana dashboard asks for what the server counts, as Ray's exporter names it."""

import json
import re
from typing import Any

import pytest
from ray.util.metrics import Metric

from helpers.example import ROOT
from sheen.serve.request_log import Metrics

LABELS = {"application", "replica", "status", "finish_reason", "reason", "le"}
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
METRICS = [metric for metric in vars(Metrics()).values() if isinstance(metric, Metric)]
KINDS = {metric.info["name"]: type(metric).__name__.lower() for metric in METRICS}
EXPORTED = {f"ray_{name}{SUFFIX[kind]}": kind for name, kind in KINDS.items()}
METRIC = re.compile(r"\bray_\w+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    return found


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_every_metric_is_shown_and_none_is_made_up(dashboard: dict[str, Any]) -> None:
    asked = {name for query in queries(dashboard) for name in METRIC.findall(query)}
    assert asked == set(EXPORTED)
    variables = json.dumps(dashboard["templating"])
    assert set(METRIC.findall(variables)) <= set(EXPORTED)


def test_a_metric_is_read_as_its_kind(dashboard: dict[str, Any]) -> None:
    for query in queries(dashboard):
        for name in METRIC.findall(query):
            rated = f"rate({name}{{" in query
            assert rated == (EXPORTED[name] != "gauge"), query
            assert ("histogram_quantile" in query) == (EXPORTED[name] == "histogram"), query


def test_queries_choose_by_the_variables_and_by_labels_that_exist(
    dashboard: dict[str, Any],
) -> None:
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource", "application", "replica"}
    for query in queries(dashboard):
        assert query.count("(") == query.count(")"), query
        for selector in re.findall(r"\{(.*?)\}", query):
            matchers = dict(re.findall(r'(\w+)(?:=|!=|=~)"([^"]*)"', selector))
            assert matchers["application"] == "$application", query
            assert matchers["replica"] == "$replica", query
            assert set(matchers) <= LABELS, query
        for grouping in re.findall(r"by \((.*?)\)", query):
            assert grouping in LABELS, query


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & cells, panel["title"]
        places |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
