"""``python -m bench.simulation``: what passes at the upstream while machines, their network or Redis fail."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from bench.simulation.cases import CASES, judge, simulate
from tests.redis_server import RedisServer


@click.command()
@click.option("--nodes", default="2,8,64", show_default=True, help="How many machines, of two workers each.")
@click.option("--cases", default=",".join(CASES), show_default=True, help="What goes wrong.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same run.")
def main(nodes: str, cases: str, seed: int) -> None:
    """Print for each case what passed, what may, and whether that held; exit status 1 where something did not."""
    fine = True
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="flowstack-simulation-") as folder:
        server = RedisServer(Path(folder) / "redis").start()
        try:
            click.echo(f"seed {seed}; of rpm and tpm the most in any 60 s, of a budget cents in a day")
            for name in cases.split(","):
                case = CASES[name]
                click.echo(f"\n{name}: {case.title}")
                for on_failure in ("refuse", "local"):
                    for count in map(int, nodes.split(",")):
                        world = simulate(lambda db: server.client(db=db), case, count, on_failure, seed)
                        calls, sent = sum(one.calls for one in world.servers), world.upstream
                        click.echo(
                            f"  {on_failure}, {count} machines: {calls} calls; refused {sent.refused} for a limit, "
                            f"{sent.unavailable} without Redis; {world.untold} cents never told"
                        )
                        for found in judge(world, case, count, on_failure):
                            fine = fine and found.held
                            held = "held" if found.held else "NOT HELD"
                            click.echo(
                                f"    {found.limit:13}{found.passed:>8,} passed, may {found.stated:>9,}  "
                                f"{held:9} = {found.terms}"
                            )
        finally:
            server.stop()
    click.echo(f"{time.perf_counter() - begun:.0f} s", err=True)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
