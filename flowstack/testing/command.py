"""``flowstack stand-in``: an upstream to try Flowstack against, without a provider's account."""

from __future__ import annotations

from typing import Any

import click
from twisted.internet.defer import Deferred

from flowstack.testing.standin import StandIn, faults

_DIRECTIVES = "\n".join(f"  {name:<12} {meaning}" for name, meaning in faults.HELP.items())


def _local(endpoint: str) -> str:
    """The endpoint string, bound to this machine unless it says otherwise."""
    internet = endpoint.startswith(("tcp:", "ssl:"))
    return f"{endpoint}:interface=127.0.0.1" if internet and "interface=" not in endpoint else endpoint


@click.command(
    "stand-in",
    short_help="Run a stand-in for the OpenAI API, to try Flowstack with.",
    epilog=f"\b\nDirectives of the request header Stand-In, separated by a semicolon:\n{_DIRECTIVES}",
)
@click.option(
    "--listen",
    "endpoints",
    metavar="ENDPOINT",
    multiple=True,
    default=("tcp:8081:interface=127.0.0.1",),
    show_default=True,
    help="Where to listen, as a Twisted endpoint string; repeatable. Without interface= it is 127.0.0.1; port 0 means"
    " any free port.",
)
def stand_in(endpoints: tuple[str, ...]) -> None:
    """Run a stand-in for the OpenAI API, to try and test Flowstack with.

    It generates no language: it answers with an echo of what it was sent, in OpenAI's shapes, with OpenAI's headers.
    It keeps nothing and is not for production. Any key that begins with "sk-" is good enough for it.

    \b
    Example: a stand-in, and a streamed answer from it.
      flowstack stand-in --listen tcp:8081
      curl -N http://127.0.0.1:8081/v1/chat/completions \\
           -H 'Authorization: Bearer sk-any' -H 'Stand-In: gap=0.2' -H 'Content-Type: application/json' \\
           -d '{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "Hello to all of you"}]}'

    It speaks OpenAI's WebSockets too, at /v1/realtime and /v1/responses. Silence ends what is said to it; it answers
    with an echo and audio that is none.

    \b
    What it saw is at http://127.0.0.1:8081/stand-in/state
    """
    from twisted.internet import reactor  # the command's own: importing it installs it

    run(reactor, endpoints)


def run(reactor: Any, endpoints: tuple[str, ...]) -> None:
    """Serve on all endpoints until SIGTERM or SIGINT.

    :raises click.ClickException: where an endpoint is none, or cannot be bound; says which and why.
    """
    failed: list[str] = []

    async def begin() -> None:
        for endpoint in endpoints:
            server = StandIn(reactor, _local(endpoint))
            try:
                await server.start()
            except Exception as fault:
                failed.append(f"cannot listen on {endpoint!r}: {fault or type(fault).__name__}")
                reactor.stop()
                return
            reactor.addSystemEventTrigger("before", "shutdown", server.stop)
            click.echo(f"stand-in listening on {server.url}")

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(begin()))
    reactor.run()
    if failed:
        raise click.ClickException(failed[0])
