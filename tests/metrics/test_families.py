"""The catalogue of metrics, and the page that explains it."""

from __future__ import annotations

import re
from pathlib import Path

from flowstack.metrics.families import FAMILIES, LAYOUT
from flowstack.metrics.segment import CELLS

MANUAL = Path(__file__).parents[2] / "docs"
DOCS = (MANUAL / "reference/metrics.rst").read_text("utf-8")
ALERTS = (MANUAL / "howto/monitor.rst").read_text("utf-8")


def test_every_label_is_explained_in_the_manual() -> None:
    explained = set(re.findall(r"^``(\w+)``$", DOCS, re.MULTILINE))
    labels = {label for family in FAMILIES.values() for label in family.labels}
    labels |= {name for family in FAMILIES.values() for series in family.series for name, _ in series.fixed}
    assert labels <= explained


def test_the_manual_names_no_metric_that_there_is_not() -> None:
    names = {series.name for family in FAMILIES.values() for series in family.series}
    labels = {label for family in FAMILIES.values() for label in family.labels}
    named = set(re.findall(r"\b(?:gen_ai|flowstack)_\w*[a-z]\b", DOCS + ALERTS))
    assert named - labels - {"flowstack_build_info", "gen_ai_token_type"} <= names


def test_no_label_says_whose_key_it_was() -> None:
    labels = {label for family in FAMILIES.values() for label in family.labels}
    assert not {label for label in labels if re.search("key|owner|client|addr|user", label)}


def test_counters_and_only_they_are_named_totals() -> None:
    for family in FAMILIES.values():
        for series in family.series:
            assert series.name.endswith("_total") == (series.kind == "counter")


def test_bounds_rise() -> None:
    for family in FAMILIES.values():
        for series in family.series:
            assert list(series.recorded_bounds) == sorted(set(series.recorded_bounds))
            assert bool(series.bounds) == (series.kind == "histogram")


def test_all_families_at_their_bound_have_room_in_a_segment() -> None:
    assert sum(family.size * (family.limit + 1) for family in FAMILIES.values()) < CELLS


def test_a_gauge_stands_alone_since_a_new_process_takes_it_back_whole() -> None:
    for family in FAMILIES.values():
        if any(series.kind == "gauge" for series in family.series):
            assert len(family.series) == 1


def test_the_layout_is_the_same_in_each_process() -> None:
    import subprocess
    import sys

    told = subprocess.run(
        [sys.executable, "-c", "from flowstack.metrics.families import LAYOUT; print(LAYOUT)"],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(told.stdout) == LAYOUT
