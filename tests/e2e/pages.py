"""A Flowstack with two weeks of use behind it, and Chromium in front of its page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright

from scripts.week import fill
from tests.e2e.processes import Proxy, eventually
from tests.e2e.test_workers import admin_port

VIEWER, MANAGER = "viewer-token-of-the-tests-01", "manager-token-of-the-tests-1"

DESK, TABLET, PHONE = {"width": 1440, "height": 900}, {"width": 900, "height": 1100}, {"width": 390, "height": 844}

LIMIT = 30_000.0
"""Milliseconds for what should happen at once, on a busy machine."""

WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error(`the policy forbids ${event.blockedURI}`));
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...more) {
  const box = this.measureText(text), at = this.getTransform().transformPoint({ x, y });
  const [left, right] = [at.x - box.actualBoundingBoxLeft, at.x + box.actualBoundingBoxRight];
  if (this.canvas.closest(".plot") && (left < 0 || right > this.canvas.width))
    console.error(`a label of the chart is cut: ${text}`);
  return write.call(this, text, x, y, ...more);
};
"""
"""In each page, before its own scripts: what is wrong there and raises nothing."""

SETTLED = "() => document.querySelector('main > :not(noscript)') && !document.querySelector('[aria-busy=true]')"


class House:
    """Flowstack as a process: its state is that of :mod:`scripts.week`, its tokens are :data:`VIEWER` and the other.

    :param more: tables of its configuration.
    :ivar url: the page's.
    """

    def __init__(self, folder: Path, upstream: str, now: float | None = None, **more: dict[str, Any]) -> None:
        state = folder / "proxy" / "state"
        state.mkdir(mode=0o700, parents=True)
        fill(folder / "keys", state, time.time() if now is None else now)
        for name, token in (("view", VIEWER), ("manage", MANAGER)):
            (folder / name).write_text(token)
            (folder / name).chmod(0o600)
        self.proxy = Proxy(
            folder / "proxy", upstream,
            settings={
                "server": {"admin": "tcp:0:interface=127.0.0.1"},
                "admin": {"token_file": str(folder / "view"), "manage_token_file": str(folder / "manage"),
                          "manage_keys": True},
                **more,
            },
        )  # fmt: skip
        own = self.proxy.keys_path.read_text("utf-8")
        self.proxy.keystore.replace((folder / "keys").read_text("utf-8") + own)
        self.proxy.reload()
        self.url = f"http://127.0.0.1:{admin_port(self.proxy)}/"
        eventually(self.is_indexed, "the two weeks are in the index")

    def is_indexed(self) -> bool:
        """Whether reports have all rows."""
        report = self.get("report?by=")
        return bool(report["total"]["requests"]) and not report["journal_bytes_not_indexed"]

    def get(self, path: str) -> Any:
        """What the API answers the viewer's token."""
        asked = Request(f"{self.url}api/v1/{path}", headers={"Authorization": f"Bearer {VIEWER}"})
        with urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def new_key(self, **attributes: str) -> str:
        """Have the API make a key; its secret is in no file or log from then on."""
        fields = {"Authorization": f"Bearer {MANAGER}", "Content-Type": "application/json"}
        asked = Request(f"{self.url}api/v1/keys", json.dumps({"attributes": attributes}).encode(), fields)
        with urlopen(asked, timeout=60) as answer:
            made = json.load(answer)
        assert made["reload"]["ok"], made
        secret = str(made["secret"])
        self.proxy.keystore.tokens.add(secret)
        return secret


class Pages:
    """Browsers' windows, each with cookies of its own, and what went wrong in them.

    :ivar faults: what the consoles of all of them said, and the exceptions that their scripts did not catch.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._lasting: dict[tuple[str, bool], BrowserContext] = {}
        self._cookies: dict[str, Any] = {}
        self.url = url
        self.faults: list[str] = []

    def open(
        self, address: str = "", token: str | None = None, *, dark: bool = False, size: dict[str, int] | None = None,
        **more: Any,
    ) -> Page:  # fmt: skip
        """A new window on an address below the page's, of one who signed in with a token, or of a stranger."""
        page = self._context(token, dark, **more).new_page()
        page.set_viewport_size(size or DESK)  # type: ignore[arg-type]
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.goto(address if "://" in address else self.url + address)
        settle(page)
        return page

    def close(self) -> None:
        """Close all windows; nothing is remembered but who signed in."""
        while self._contexts:
            self._contexts.pop().close()
        for context in self._lasting.values():
            for page in context.pages:
                page.evaluate("() => localStorage.clear()")
                page.close()

    def _context(self, token: str | None, dark: bool, **more: Any) -> BrowserContext:
        """One with no window; those of a token have compiled the page's scripts, and so last."""
        lasting = self._lasting.get((token, dark)) if token and not more else None
        if lasting is not None and not lasting.pages:
            return lasting
        context = self._browser.new_context(
            color_scheme="dark" if dark else "light", storage_state=self._signed_in(token), reduced_motion="reduce",
            **more,
        )  # fmt: skip
        context.set_default_timeout(LIMIT)
        context.add_init_script(WATCH)
        if token and not more and lasting is None:
            self._lasting[token, dark] = context
        else:
            self._contexts.append(context)
        return context

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _signed_in(self, token: str | None) -> Any:
        if token is None:
            return None
        if token not in self._cookies:
            page = self.open()
            sign_in(page, token)
            self._cookies[token] = page.context.storage_state()
        return self._cookies[token]


def sign_in(page: Page, token: str) -> None:
    """Sign in by the form."""
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation", name="Views").wait_for()
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has all that it asked for, once a click or key has had its effect."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    page.wait_for_function(SETTLED)


def go(page: Page, address: str) -> None:
    """Go to another view of the same page, as by a link in it."""
    page.evaluate("(to) => { location.hash = to; }", address)
    page.wait_for_function("(to) => location.hash === to", arg=address)
    settle(page)


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Debian's, without a window."""
    path = shutil.which("chromium")
    assert path, "chromium is missing (Debian: apt install chromium)"
    # The sandbox needs a user who is not root; only pages of our own are shown.
    browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
    yield browser
    browser.close()
