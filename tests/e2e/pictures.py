"""``make screenshots``: the page's views, light and dark, as the browser suite sees them, for the manual.

    python -m tests.e2e.pictures docs/pictures
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.e2e.pages import MANAGER, House, Pages, chromium, go, settle
from tests.e2e.processes import StandIn, stop_all

SIZE = {"width": 1200, "height": 720}
HEIGHT = {"requests": 440, "audit": 320}
"""Of a picture, where that is less: text makes large files."""


def main() -> None:
    """Draw them into the folder that is named."""
    target = Path(sys.argv[1])
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        stand_in = StandIn(Path(name))
        house = House(Path(name) / "house", f"{stand_in.url}/v1")
        try:
            draw(house, target)
        finally:
            stop_all([house.proxy, stand_in])


def draw(house: House, target: Path) -> None:
    """Draw each view in both colours."""
    (row,) = house.get("requests?limit=1&status=504")["requests"]
    views = {
        "overview": "#/overview", "requests": f"#/requests?where=owner=search%20team&row={row['request_id']}",
        "keys": f"#/keys?open={row['key_id']}", "groups": "#/groups?open=search", "audit": "#/audit",
    }  # fmt: skip
    key = house.new_key(owner="Ida", budget="2usd/day", rpm="60")
    house.new_key(owner="a trial", expires="2030-06-30")
    with sync_playwright() as playwright, chromium(playwright) as browser:
        pages = Pages(browser, house.url)
        for dark in (False, True):
            page = pages.open("", MANAGER, dark=dark, size=SIZE)
            for view, address in views.items():
                go(page, address)
                settle(page)
                part = {"x": 0, "y": 0, "width": SIZE["width"], "height": HEIGHT.get(view, SIZE["height"])}
                page.screenshot(path=target / f"page-{view}-{'dark' if dark else 'light'}.png", clip=part)  # type: ignore[arg-type]
            page = pages.open(f"{house.proxy.url}/flowstack/", dark=dark, size=SIZE)
            page.get_by_label("Flowstack key").fill(key)
            page.get_by_label("Flowstack key").press("Enter")
            page.locator(".standings").wait_for()
            settle(page)
            page.screenshot(path=target / f"page-mine-{'dark' if dark else 'light'}.png")
        assert pages.faults == [], pages.faults
        pages.close()


if __name__ == "__main__":
    main()
