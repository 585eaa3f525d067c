"""The search for keys in whatever Flowstack wrote, printed or shows."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.e2e.processes import contents
from tests.e2e.raw import Answer
from tests.e2e.troubles import Scene

WINDOW = 12
"""So many characters of a secret in a row are a leak: a tenth of that would still have to be guessed."""


def leaks(stage: Scene, text: bytes) -> list[str]:
    """What of which secret the text holds: in clear, in Base64, or as hexadecimal digits, in any letter case."""
    found = []
    text = text.lower()
    for what, secret in stage.secrets.items():
        # The id in a Flowstack key is no secret, nor is the beginning that says what kind of key it is.
        hidden = secret[16:] if secret.startswith("fsk-") else secret[8:] if secret.startswith("sk-") else secret
        forms = [
            hidden,
            *(base64.b64encode(b"x" * shift + secret.encode())[8:-4].decode() for shift in range(3)),
            hidden.encode().hex(),
        ]
        for form in forms:
            form = form.lower()
            # Each window holds a whole piece of half its length: where no such piece is, no window is.
            half = WINDOW // 2
            if not any(form[at : at + half].encode() in text for at in range(0, len(form) - half + 1, half)):
                continue
            if any(form[at : at + WINDOW].encode() in text for at in range(len(form) - WINDOW + 1)):
                found.append(what)
                break
    return found


def assert_kept(stage: Scene) -> None:
    """Nothing that the proxy wrote or shows holds a secret."""
    for path, data in contents(stage.proxy.folder):
        assert leaks(stage, data) == [], f"{path.name} holds it"
    process = Path("/proc") / str(stage.proxy.pid)
    for name in ("cmdline", "environ", "comm"):
        assert leaks(stage, (process / name).read_bytes()) == [], f"{name} of the process holds it"


def own_words(answer: Answer) -> bytes:
    """What of an answer Flowstack itself wrote."""
    return answer.raw_head + (answer.body if answer.one(b"flowstack-error") else b"")
