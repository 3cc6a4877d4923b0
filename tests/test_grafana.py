"""The dashboard asks for nothing that the server does not say."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from thriftroute.serve.records.metrics import Metrics

PATH = Path(__file__).parents[1] / "deploy" / "grafana" / "thriftroute.json"
DASHBOARD: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def grouped_by(query: str) -> set[str]:
    lists = re.findall(r"by \(([^)]*)\)", query)
    return {label.strip() for labels in lists for label in labels.split(",")}


def exported(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Series name -> its labels, of the metrics as they are declared."""
    found: dict[str, set[str]] = {}
    for collector in registry._collector_to_names:
        labels = set(collector._labelnames)  # type: ignore[attr-defined]
        for family in collector.describe():
            if family.type == "histogram":
                for suffix in ("_sum", "_count"):
                    found[family.name + suffix] = labels
                found[family.name + "_bucket"] = labels | {"le"}
            else:
                found[family.name + ("_total" if family.type == "counter" else "")] = labels
    return found


SERIES = exported(Metrics().registry)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_series_and_labels_that_exist(query: str) -> None:
    names = re.findall(r"thriftroute_\w+", query)
    assert names
    assert set(names) <= set(SERIES)
    for name, selector in re.findall(r"(thriftroute_\w+)\{([^}]*)\}", query):
        # Prometheus itself adds the job; the dashboard narrows every series to the chosen one.
        asked = set(re.findall(r"(\w+)=~?\"", selector))
        assert "job" in asked
        assert asked - {"job"} <= SERIES[name]
    assert grouped_by(query) <= set.union(*(SERIES[name] for name in names))
    assert query.count("(") == query.count(")")
    assert len(re.findall(r"thriftroute_\w+\{", query)) == len(names)


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= grouped_by(target["expr"])


def test_every_metric_of_use_to_a_person_is_on_it() -> None:
    used = set(re.findall(r"thriftroute_\w+", " ".join(QUERIES)))
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in SERIES}
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in used}
    assert families - shown == {"thriftroute_info"}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    spots = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(spot["x"] + spot["w"] <= 24 for spot in spots)
    for a, b in combinations(spots, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


def test_the_data_source_is_a_choice_not_somebody_s_own() -> None:
    for panel in PANELS:
        for source in (panel["datasource"], *(t["datasource"] for t in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job"]
    assert "id" not in DASHBOARD  # Grafana gives it one
