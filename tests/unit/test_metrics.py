"""The metrics keep Prometheus' conventions, and document and dashboard know all of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import parse

from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import JobState, Phase, Step
from rythmiq_ray.telemetry.metrics import CATALOG, MAX_QUEUES, Kind, Labels, Metric, Metrics, PrometheusSink

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "rythmiq.json"
SUFFIXES = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}


def metrics_table() -> str:
    """The table of metrics, as docs/metrics.md has it."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in CATALOG:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def test_the_document_has_the_table_of_metrics() -> None:
    assert metrics_table() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_names_and_units_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"rythmiq_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|millis\w*|minutes|kb|mb|count|sum|bucket)\b", metric.name)
    if metric.kind is Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
        assert metric.buckets[0] > 0, "Ray takes no bucket at 0"
        assert all(low < high for low, high in pairwise(metric.buckets))
    assert not {"id", "job_id", "attempt", "user_id", "driver_id", "job", "instance", "le"} & set(metric.labels)
    assert metric.help.endswith(".")


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    used = {name for expr in expressions() for name in re.findall(r"\brythmiq_\w+", expr)}
    known = {f"{metric.name}{suffix}" for metric in CATALOG for suffix in SUFFIXES[metric.kind]}
    assert used <= known
    for metric in CATALOG:
        assert any(f"{metric.name}{suffix}" in used for suffix in SUFFIXES[metric.kind]), metric.name


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_of_the_dashboard_is_promql_over_labels_that_exist(expression: str) -> None:
    concrete = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in concrete
    parse(concrete)
    labels = {label for metric in CATALOG for label in metric.labels} | {"instance", "le"}
    grouped = {
        label.strip() for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", concrete) for label in found.split(",")
    }
    matched = set(re.findall(r"[{,]\s*(\w+)(?:=~|!~|!=|=)", concrete))
    assert grouped | matched <= labels


def test_the_dashboard_can_be_imported_anywhere() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert dashboard["id"] is None
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
    sources = {
        source["datasource"]["uid"]
        for panel in panels
        for source in [panel, *panel.get("targets", [])]
        if panel["type"] != "row"
    }
    assert sources == {"${datasource}"}


def page(sink: PrometheusSink) -> dict[tuple[str, Labels], float]:
    text = sink.page("")[0].decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_an_attempt_that_is_retried_ends_no_job() -> None:
    sink = PrometheusSink()
    metrics = Metrics([sink])
    ended = {"artifact_bytes": 10, "cost_credits": 0.5}
    metrics.attempt_ended(JobState.FAILED, ErrorCode.REMOTE_KILLED, retried=True, **ended)  # type: ignore[arg-type]
    metrics.attempt_ended(JobState.SUCCEEDED, None, retried=False, **ended)  # type: ignore[arg-type]
    metrics.phase_ended(Phase.WAITING, 42.0)
    samples = page(sink)
    assert samples["rythmiq_jobs_ended_total", ("FAILED",)] == 0
    assert samples["rythmiq_jobs_ended_total", ("SUCCEEDED",)] == 1
    assert samples["rythmiq_job_retries_total", ("remote_killed",)] == 1
    assert samples["rythmiq_attempts_ended_total", ("remote_killed", "FAILED")] == 1
    assert samples["rythmiq_artifact_bytes_total", ()] == 20
    assert samples["rythmiq_cost_credits_total", ()] == 1.0
    assert samples["rythmiq_phase_duration_seconds_sum", ("waiting",)] == 42.0
    assert samples["rythmiq_steps_lost_total", (Step.COLLECT.value,)] == 0


def test_queues_by_the_thousand_cost_few_series_and_an_empty_one_shows_0() -> None:
    sink = PrometheusSink()
    metrics = Metrics([sink])
    metrics.queue_depth({("first", "QUEUED"): 3}, 1.0)
    metrics.queue_depth({(f"tenant-{n}", "QUEUED"): 2 for n in range(1000)}, 1.0)
    depths = {labels: value for (name, labels), value in page(sink).items() if name == "rythmiq_queue_jobs"}
    assert len(depths) == MAX_QUEUES + 1
    assert depths["first", "QUEUED"] == 0
    assert depths["other", "QUEUED"] == 2 * (1000 - (MAX_QUEUES - 1))


def test_a_sink_that_comes_later_is_told_from_then_on() -> None:
    first, second = PrometheusSink(), PrometheusSink()
    metrics = Metrics()
    assert not metrics.on
    metrics.claimed(1)
    metrics.attach(first)
    assert metrics.on
    metrics.claimed(2)
    metrics.attach(second)
    metrics.claimed(3)
    assert page(first)["rythmiq_jobs_claimed_total", ()] == 5
    assert page(second)["rythmiq_jobs_claimed_total", ()] == 3


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_promql_over_metrics_that_exist_and_says_what_to_do(rule: dict[str, Any]) -> None:
    parse(rule["expr"])
    known = {f"{metric.name}{suffix}" for metric in CATALOG for suffix in SUFFIXES[metric.kind]}
    used = set(re.findall(r"\brythmiq_\w+", rule["expr"]))
    assert used
    assert used <= known
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    labels = {label for metric in CATALOG for label in metric.labels} | {"instance"}
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= labels


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
