"""Start a stand-in for OpenAI and the proxy in front of it, and print requests to paste. Ctrl-C ends both.

What both write goes to the screen. Their files are in ``demo/``, or in the folder that is named as the argument. They
are new at each start: a key, a token for the page, and two weeks of use that nobody made, up to now. Nothing leaves
this machine: both listen on 127.0.0.1, on 8081, 8080 and (the page and metrics) 9110 where these are free.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import IO
from urllib.request import Request, urlopen

from scripts.week import fill

FOLDER = Path(__file__).resolve().parent.parent / "demo"
BIN = Path(sys.executable).parent
START_LIMIT = 30.0
"""Seconds that a server may take until it listens."""
END_LIMIT = 5.0
"""Seconds that a server may take to end; streams that are under way then are cut."""

LISTENING = re.compile(r"listening on (http://[0-9.]+:[0-9]+)")

REQUESTS = """
Everything runs. In another terminal, a request and its answer as JSON:

curl {url}/v1/chat/completions \\
  -H 'Authorization: Bearer sk-demo' \\
  -H 'Flowstack-Auth: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "Hi"}}]}}'

The same, streamed:

curl -N {url}/v1/chat/completions \\
  -H 'Authorization: Bearer sk-demo' \\
  -H 'Flowstack-Auth: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "gpt-4o-mini", "stream": true, "messages": [{{"role": "user", "content": "Hi"}}]}}'

Over a WebSocket, with OpenAI's package for Python (pip install 'openai[realtime]'):

OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}~sk-demo python3 -c '
from openai import OpenAI
with OpenAI().responses.connect() as connection:
    connection.response.create(model="gpt-4o-mini", input="Hi")
    for event in connection:
        print(event.type)
        if event.type == "response.completed":
            break
'

Each leaves a row, which this terminal shows too. What was used, and the metrics:

{flowstack} usage --state {state} --by owner,model --where owner=demo

curl -H "Authorization: Bearer $(cat {token})" {admin}/metrics

The page, {admin}/, shows your requests beside two weeks of made-up use. This link signs a browser on this machine in,
once and within ten minutes; after that, use the token in {token}, or start anew:

{admin}/#code={code}

The answers come from a stand-in: no model is asked, and nothing is billed. Ctrl-C ends it.
"""


class DemoError(Exception):
    """Says what went wrong, and what to do."""


def endpoint(port: int) -> str:
    """Return the endpoint string for a port on loopback; where it is taken, for any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            print(f"port {port} is taken, so another one is used", flush=True)
            port = 0
    return f"tcp:{port}:interface=127.0.0.1"


def show(name: str, lines: IO[str], urls: Queue[str | None]) -> None:
    """Copy a server's output to the screen, and put the URLs of its listeners into the queue; None at its end."""
    for line in lines:
        if found := LISTENING.search(line):
            urls.put(found[1])
        print(f"{name:>9} | {line}", end="", flush=True)
    urls.put(None)


@contextmanager
def running(
    name: str, command: Sequence[str], folder: Path, listeners: int = 1
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a server; yield it and the URL of each of its listeners once it listens; end it.

    :raises DemoError: it did not come to listen.
    """
    # A session of its own keeps the terminal's Ctrl-C away: the proxy is to end before its upstream does.
    server = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    urls: Queue[str | None] = Queue()
    reader = threading.Thread(target=show, args=(name, server.stdout, urls), daemon=True)
    reader.start()
    try:
        found: list[str] = []
        while len(found) < listeners:
            try:
                url = urls.get(timeout=START_LIMIT)
            except Empty:
                raise DemoError(f"{name} did not listen within {START_LIMIT:g} s; what it wrote stands above") from None
            if url is None:
                raise DemoError(f"{name} ended with status {server.wait()}; what it wrote stands above")
            found.append(url)
        yield server, found
    finally:
        server.terminate()
        try:
            server.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        reader.join()


def new_key(keys: Path) -> str:
    """Make a key in a keystore file, as an operator does.

    :raises DemoError: the command failed.
    """
    # With --inject-usage the streamed request's tokens are in the report too, though it does not ask for them.
    command = [str(BIN / "flowstack"), "keys", "add", "--keys", str(keys), "--owner", "demo", "--inject-usage"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"flowstack keys add failed: {done.stderr.strip()}")
    return done.stdout.strip()


def begin_anew(state: Path) -> None:
    """Make the state directory, in place of an earlier demo's.

    :raises DemoError: what is there is no demo's.
    """
    mark = state / "of-make-demo"
    if state.exists():
        if not mark.exists():
            raise DemoError(f"{state} is not from a demo, and would be removed; remove it, or name another folder")
        shutil.rmtree(state)
    state.mkdir(mode=0o700)
    mark.touch()


def sign_in_code(admin: str, token: str) -> str:
    """Have the page's API make what a sign-in link needs."""
    asked = Request(f"{admin}/api/v1/session/link", method="POST", headers={"Authorization": f"Bearer {token}"})
    with urlopen(asked, timeout=START_LIMIT) as answer:
        return str(json.load(answer)["code"])


def interrupt(*_: object) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def demo(folder: Path) -> None:
    """Run until somebody ends it.

    :param folder: for the keystore and the proxy's state; made if missing.
    :raises DemoError: something did not start, or ended by itself.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    keys, state, token, config = folder / "keys", folder / "state", folder / "token", folder / "flowstack.toml"
    keys.unlink(missing_ok=True)
    begin_anew(state)
    print("making up two weeks of use; then two servers start", flush=True)
    fill(keys, state, time.time())
    key = new_key(keys)
    token.unlink(missing_ok=True)
    token.touch(mode=0o600)
    token.write_text(secrets.token_urlsafe(32))
    config.write_text(f"[admin]\nmanage_token_file = {json.dumps(str(token))}\nmanage_keys = true\n", "utf-8")
    stand_in = [str(BIN / "flowstack"), "stand-in", "--listen", endpoint(8081)]
    with running("stand-in", stand_in, folder) as (_, [upstream]):
        proxy = [str(BIN / "twistd"), "-n", "--pidfile=", "flowstack", "--config", str(config)]
        proxy += ["--listen", endpoint(8080)]
        proxy += ["--admin", endpoint(9110), "--upstream", f"{upstream}/v1", "--keys", str(keys), "--state", str(state)]
        with running("flowstack", proxy, folder, 2) as (server, [url, admin]):
            words = {"flowstack": BIN / "flowstack", "state": state, "token": token}
            quoted = {name: shlex.quote(str(path)) for name, path in words.items()}
            code = sign_in_code(admin, token.read_text())
            print(REQUESTS.format(url=url, key=key, admin=admin, code=code, **quoted), flush=True)
            status = server.wait()
            raise DemoError(f"flowstack ended by itself, with status {status}; what it wrote stands above")


def main() -> int:
    """Run the demo; 0 when a person ended it."""
    signal.signal(signal.SIGTERM, interrupt)
    # Bash starts a background job with SIGINT ignored; Python then would not install its own handler.
    signal.signal(signal.SIGINT, interrupt)
    try:
        demo(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else FOLDER)
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEnded.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
