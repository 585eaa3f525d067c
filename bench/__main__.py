"""``python -m bench``: run it, print it, keep it."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import click
from rich.console import Console

from bench import machine, measures, report, subjects, wrk
from bench.lab import Lab
from bench.procs import ROOT, BenchError
from bench.run import Run
from bench.samples import Sample, as_documents, sum_up
from bench.scale import SCALES
from bench.subjects.base import Subject
from bench.targets import judge
from flowstack.tokens import make_token

#: Open files that 5,000 streams need in a subject, two each, and some to spare.
FILES = 16_384


def _names(value: str | None, usual: Iterable[str]) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()] if value else list(usual)


@click.command(
    help=f"""Measure Flowstack beside other proxies, and print medians and ratios to nginx and Envoy.

Subjects: {", ".join(subjects.SUBJECTS)}. Measures: {", ".join(measures.MEASURES)}. With PEERS=all in the environment
{", ".join(subjects.PEERS)} too.

Example: python -m bench --quick --subjects nginx,flowstack --measures requests,sse"""
)
@click.option("--subjects", "wanted", metavar="NAMES", help="Which proxies, by name, with commas.")
@click.option("--measures", "chosen", metavar="NAMES", help="Which figures, by name, with commas.")
@click.option("--rounds", type=click.IntRange(1, 50), help="How often everything is started anew.")
@click.option("--scale", "scale_name", type=click.Choice(list(SCALES)), default="full", show_default=True)
@click.option("--quick", is_flag=True, help="Only Flowstack and nginx, in under two minutes.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "bench" / "results",
    help="Where the raw data and the page go.  [default: bench/results]",
)
def main(wanted: str | None, chosen: str | None, rounds: int | None, scale_name: str, quick: bool, out: Path) -> None:
    """See ``--help``."""
    scale_name = "quick" if quick else scale_name
    scale = SCALES[scale_name]
    if rounds is not None:
        scale = attrs.evolve(scale, rounds=rounds)
    every = os.environ.get("PEERS") == "all"
    usual = (subjects.QUICK if scale_name != "full" else subjects.USUAL) + (subjects.PEERS if every else ())
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        those = subjects.choose(_names(wanted, usual))
        these = measures.choose(_names(chosen, measures.MEASURES))
        _raise_limits()
        wrk.install()
        versions = _install(those)
        with Lab(make_token(os.urandom)[1]) as lab:
            document: dict[str, Any] = {
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine.describe(lab.cores),
                "commit": machine.commit(ROOT),
                "scale_name": scale_name,
                "scale": attrs.asdict(scale),
                "versions": versions,
            }
            # The bench itself must not get into the subject's way: it stays where the load is. Only now: whoever asked
            # afterwards which cores there are would be told of these alone.
            os.sched_setaffinity(0, lab.cores.load)
            run = Run(lab, [one for one in those if one.name in versions], these, scale, _tell, _warn)
            run.go()
    except BenchError as fault:
        raise click.ClickException(str(fault)) from None
    rows = sum_up(run.samples)
    verdicts = judge(rows)
    document |= {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "others_busy_cores": run.others_busy,
        "rows": as_documents(rows),
        "to_reach": [attrs.asdict(verdict) for verdict in verdicts],
        "samples": [attrs.asdict(sample) for sample in run.samples],
    }
    report.show(Console(), rows, verdicts)
    path = _write(out, document, report.as_rst(document, rows, verdicts))
    click.echo(f"raw data: {path}")


def _install(those: Iterable[Subject]) -> dict[str, str]:
    versions = {}
    for subject in those:
        try:
            subject.install()
            versions[subject.name] = subject.version()
        except BenchError as fault:
            _warn(f"without {subject.name}: {fault}")
    if not versions:
        raise BenchError("no subject is left to measure")
    return versions


def _raise_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        _warn(f"only {hard} open files are allowed, {FILES} are needed for 5,000 streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell(sample: Sample) -> None:
    shown = [column for column in measures.MEASURES[sample.measure].columns if column.key in sample.values][:3]
    what = (
        report.in_short(sample.fault)
        if sample.fault
        else ", ".join(f"{sample.values[c.key]:.{c.digits}f} {c.heading}" for c in shown)
    )
    click.echo(f"round {sample.round}.{sample.turn}  {sample.case:28}  {sample.subject:15}  {what}", err=True)


def _warn(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


def _write(out: Path, document: dict[str, Any], page: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    day = document["started"][:10]
    stem, count = day, 1
    while (out / f"{stem}.json").exists():
        count += 1
        stem = f"{day}-{count}"
    path = out / f"{stem}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".rst").write_text(page)
    return path


def _stop(number: int, frame: FrameType | None) -> None:
    # The way out ends all children; nothing more may come between.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
