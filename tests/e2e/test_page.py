"""The page in Debian's Chromium, before two weeks of use: what it shows, does and refuses, as people meet it.

Each test fails by whatever the browser's console says, too: a policy that was violated, or a script that raised.
"""

from __future__ import annotations

import json
import re
import secrets
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

from flowstack.ledger.lines import line_of
from scripts.environments import ensure
from tests.e2e.live import PROVIDER_KEY
from tests.e2e.pages import DESK, LIMIT, MANAGER, PHONE, TABLET, VIEWER, House, Pages, chromium, go, settle, sign_in
from tests.e2e.processes import StandIn, eventually, invoke
from tests.e2e.sdk_runs import OPENAI_KEY, Sdks
from tests.ledger.journals import rows
from tests.ledger.machines import Machine
from tests.ledger.samples import row
from tests.ledger.servers import server
from tests.testing.sockets import websocket
from tests.testing.wire import Client

pytestmark = pytest.mark.e2e

VIEWS = ("overview", "requests", "keys", "groups", "audit")

HOSTILE = "<img src=x onerror=alert(1)>'\"${alert(2)}"
LONG = "W" * 400
RIGHT_TO_LEFT = "مفتاح البحث שלום 🦀"

TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .slice(0, 5).map((one) => one.outerHTML.slice(0, 200))"""

expect.set_options(timeout=LIMIT)


@pytest.fixture(scope="module")
def house(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"), f"{stand_in.url}/v1")
    yield house
    house.proxy.stop()
    house.proxy.assert_no_secrets([VIEWER, MANAGER])


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with sync_playwright() as playwright, chromium(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def windows(house: House, chrome: Browser) -> Pages:
    return Pages(chrome, house.url)


@pytest.fixture
def pages(windows: Pages) -> Iterator[Pages]:
    yield windows
    windows.close()
    faults, windows.faults = windows.faults, []
    assert faults == []


def rows_of(page: Page) -> Locator:
    return page.locator(".list tbody tr")


@cache
def axe() -> str:
    """The text of the accessibility checker."""
    return (ensure("node-axe") / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


def assert_accessible(page: Page, where: str, *rules: str) -> None:
    """See that axe finds nothing serious or critical, by these rules or by all."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(axe())
    found = page.evaluate(
        "(runOnly) => axe.run(document, { resultTypes: ['violations'], ...(runOnly.length ? { runOnly } : {}) })", rules
    )
    assert [
        f"{where}: {one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ] == []


def assert_fits(page: Page) -> None:
    """See that nothing makes the page scroll sideways, once charts have their new width."""
    try:
        page.wait_for_function("() => document.scrollingElement.scrollWidth <= document.documentElement.clientWidth",
                               timeout=LIMIT / 6)  # fmt: skip
    except TimeoutError:
        raise AssertionError(f"too wide: {page.evaluate(TOO_WIDE)}") from None


def ask(house: House, key: str, **more: str) -> int:
    """A request through the proxy; its row's texts are as given."""
    body = json.dumps({"model": more.pop("model", "gpt-4o-mini"), "messages": [{"role": "user", "content": "x"}]})
    fields = {"Flowstack-Auth": f"Bearer {key}", "Authorization": f"Bearer {PROVIDER_KEY}"}
    asked = Request(
        f"{house.proxy.base_url}/chat/completions", body.encode(),
        fields | {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in more.items()},
    )  # fmt: skip
    with urlopen(asked, timeout=60) as answer:
        answer.read()
        return int(answer.status)


# Who may see what


def test_a_browser_without_a_session_sees_nothing(pages: Pages) -> None:
    page = pages.open("#/requests")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.locator("table, nav, .figures").count() == 0
    assert "search team" not in page.content()


def test_a_wrong_token_is_said_to_be_one(pages: Pages) -> None:
    page = pages.open()
    page.get_by_label("Token").fill("this-is-not-the-token-of-it")
    page.get_by_label("Token").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This is not the token")
    expect(page.get_by_label("Token")).to_be_focused()
    (fault,) = pages.faults
    assert "status of 401" in fault
    pages.faults.clear()


def test_a_link_signs_in_once_and_leaves_no_code_in_the_address(pages: Pages, house: House) -> None:
    asked = Request(f"{house.url}api/v1/session/link", headers={"Authorization": f"Bearer {VIEWER}"}, method="POST")
    with urlopen(asked, timeout=60) as answer:
        code = json.load(answer)["code"]
    page = pages.open(f"#code={code}")
    expect(page.get_by_role("navigation", name="Views")).to_be_visible()
    assert code not in page.url
    other = pages.open(f"#code={code}")
    expect(other.get_by_role("alert")).to_contain_text("used already")
    assert code not in other.url
    (fault,) = pages.faults
    assert "status of 401" in fault
    pages.faults.clear()


def test_signing_out_ends_the_session_in_each_window_of_it(pages: Pages) -> None:
    page = pages.open()
    sign_in(page, VIEWER)
    other = page.context.new_page()
    other.goto(f"{pages.url}#/keys")
    settle(other)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    other.get_by_role("button", name="Refresh").click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()


def test_whoever_may_only_look_is_offered_no_change(pages: Pages) -> None:
    page = pages.open("#/keys", VIEWER)
    expect(page.get_by_text("Read-only")).to_be_visible()
    rows_of(page).first.get_by_role("link").first.click()
    drawer = page.get_by_role("complementary")
    expect(drawer.get_by_role("heading", name="Attributes")).to_be_visible()
    for label in ("New key", "Change", "Rotate", "Disable", "Remove"):
        assert page.get_by_role("button", name=label, exact=True).count() == 0


# What it shows


def test_its_figures_are_those_of_the_command_to_the_cent(pages: Pages, house: House) -> None:
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    since, until_ = ((until - span).strftime("%Y-%m-%dT%H:%M:%SZ") for span in (timedelta(days=7), timedelta()))
    told = invoke(
        "flowstack", "usage", "--config", house.proxy.config_path, "--since", since, "--until", until_, "--by", "owner",
        "--format", "json",
    )  # fmt: skip
    report = json.loads(told.stdout)
    page = pages.open(f"#/overview?since={since}&until={until_}", VIEWER)

    def money(cell: Locator) -> float:
        return float(cell.inner_text().replace(",", "").lstrip("$").rstrip("+"))

    figures = page.get_by_role("group", name=re.compile("Figures"))
    assert money(figures.get_by_role("button", name=re.compile("^Spend")).locator(".value")) == round(
        report["total"]["cost_usd"], 2
    )
    requests = figures.get_by_role("button", name=re.compile("^Requests")).locator(".value")
    assert int(requests.inner_text().replace(",", "")) == report["total"]["requests"] > 1000
    shown = {
        row.locator("th").inner_text(): money(row.locator("td").nth(1))
        for row in page.locator("section.owner tbody tr").all()
    }
    assert shown == {line["owner"]: round(line["cost_usd"], 2) for line in report["groups"] if line["cost_usd"]}
    assert set(shown) >= {"search team", "support", "batch"}


def test_the_search_teams_week_and_who_is_near_a_budget_stand_on_the_first_view(pages: Pages, house: House) -> None:
    page = pages.open("", VIEWER)
    budgets = page.locator("section.budgets tbody tr")
    full = house.get("budgets")["budgets"]
    assert [budgets.nth(at).locator("th").inner_text() for at in range(2)] == [one["owner"] for one in full[:2]]
    assert "support" in [one["owner"] for one in full if 0.8 < one["spent_usd"] / one["amount_usd"] < 1]
    page.locator("section.owner").get_by_role("link", name="search team").first.click()
    settle(page)
    expect(page.locator(".chip")).to_have_text(re.compile("owner.*search team"))
    models = [row.inner_text() for row in page.locator("section.model tbody th").all()]
    assert models[0] == "gpt-4.1-2025-04-14"
    why = page.locator("section.failures").get_by_role("link", name="upstream_timeout")
    why.click()
    settle(page)
    assert page.url.startswith(f"{pages.url}#/requests?")
    statuses = [line.locator("td").first.inner_text() for line in rows_of(page).all()]
    assert statuses
    assert all(status.startswith("504 upstream_timeout") for status in statuses)


def test_each_figure_is_drawn_by_a_click_and_each_split_by_a_choice(pages: Pages) -> None:
    page = pages.open("", VIEWER)
    figures = page.locator(".figures button")
    assert figures.count() == 7
    for at in range(7):
        figures.nth(at).click()
        settle(page)
        expect(figures.nth(at)).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".stage canvas")).to_be_visible()
    for split in ("owner", "key", "upstream", "status"):
        page.get_by_label("Split by").select_option(split)
        settle(page)
        assert f"by={split}" in page.url
    page.get_by_role("button", name="As a table").click()
    settle(page)
    expect(page.locator(".stage").get_by_role("table", name=re.compile("by day"))).to_be_visible()
    page.go_back()
    settle(page)
    expect(page.locator(".stage canvas")).to_be_visible()


def test_the_list_says_whose_requests_it_has_beside_figures_of_all_machines(
    chrome: Browser, stand_in: StandIn, tmp_path: Path
) -> None:
    with server() as postgres:
        west = Machine.of(tmp_path, "west", postgres.database(tmp_path))
        west.record(rows(15))
        west.ship()
        shared = {"postgres": west.shared.postgres, "postgres_tls": False,
                  "postgres_password_file": str(west.shared.postgres_password_file)}  # fmt: skip
        house = House(tmp_path / "east", f"{stand_in.url}/v1", shared=shared)
        try:
            assert house.get("report?by=&where=node=west")["total"]["requests"] == 15
            pages = Pages(chrome, house.url)
            foot = pages.open("#/requests?since=30d", VIEWER).locator(".foot")
            expect(foot).to_contain_text(f"These are the requests of this machine, {house.get('requests')['node']}.")
            pages.close()
            assert pages.faults == []
        finally:
            house.proxy.stop()


def test_websockets_are_counted_apart_from_the_responses_on_them(pages: Pages, house: House) -> None:
    owner = "talking"
    key = house.new_key(owner=owner)
    own, theirs = f"Flowstack-Auth: Bearer {key}", f"Authorization: Bearer {PROVIDER_KEY}"
    with websocket(Client(house.proxy.port), "/v1/responses", own, key=theirs) as client:
        for _ in range(3):
            client.send(type="response.create", model="gpt-4o-mini", input="Hello")
            client.until("response.completed")
    total = eventually(lambda: of_owner(house, owner, connections=1), "all of it is indexed")
    assert (total["requests"], total["connections"]) == (3, 1)
    for size, mine in ((DESK, False), (TABLET, False), (PHONE, False), (TABLET, True), (PHONE, True)):
        if mine:
            page = pages.open(f"{house.proxy.url}/flowstack/", size=size)
            page.get_by_label("Flowstack key").fill(key)
            page.get_by_label("Flowstack key").press("Enter")
        else:
            page = pages.open(f"#/overview?since=24h&where={quote(f'owner={owner}')}", VIEWER, size=size)
        figure = page.locator(".figures button", has_text="WebSockets")
        expect(figure.locator(".value")).to_have_text("1")
        expect(page.locator(".figures button", has_text="Requests").locator(".value")).to_have_text("3")
        figure.click()
        settle(page)
        expect(figure).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".stage canvas")).to_be_visible()
        assert_fits(page)
    assert pages.open("#/overview?since=7d&where=owner%3Dnobody", VIEWER).locator(".figures button").count() == 7


def of_owner(house: House, owner: str, connections: int) -> Any:
    """The owner's figures, once the ends of so many connections are among them."""
    total = house.get(f"report?by=&where={quote(f'owner={owner}')}")["total"]
    return total if total["connections"] >= connections else None


def test_no_label_of_a_chart_is_cut_wherever_its_last_step_lies(pages: Pages) -> None:
    end = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
    page = pages.open("", VIEWER, size=PHONE)
    for hours in range(0, 24, 2):
        until = end - timedelta(hours=hours)
        since = until - timedelta(hours=24)
        go(page, f"#/overview?since={since:%Y-%m-%dT%H:%MZ}&until={until:%Y-%m-%dT%H:%MZ}")
        expect(page.locator(".stage canvas")).to_be_visible()
    go(page, "#/overview?since=30d")


def test_tiny_amounts_have_axis_labels_that_are_whole(pages: Pages, house: House) -> None:
    owner = "tiny & small"
    key = house.new_key(owner=owner)
    assert ask(house, key) == 200
    eventually(lambda: house.get(f"report?by=&where={quote(f'owner={owner}')}")["total"]["requests"], "it is indexed")
    for dark in (False, True):
        page = pages.open(f"#/overview?since=24h&where={quote(f'owner={owner}')}", VIEWER, dark=dark)
        expect(page.locator(".stage canvas")).to_be_visible()
        spend = page.locator(".figures .value").first.inner_text()
        assert re.fullmatch(r"\$0\.0{3,}\d+", spend), spend


def test_a_link_shows_what_its_sender_saw(pages: Pages) -> None:
    today = datetime.now(UTC).date()  # a period that stands still: of the last 24 hours, another row may have gone
    page = pages.open(f"#/overview?since={today - timedelta(days=6)}&until={today}", VIEWER)
    page.get_by_label("Field to filter by").select_option("owner")
    page.get_by_label("Value to filter by").fill("support")
    page.get_by_role("button", name="Filter").click()
    settle(page)
    page.locator(".figures button").nth(1).click()
    settle(page)
    seen = page.locator(".figures").inner_text()
    assert f"until={today}" in page.url
    assert "metric=requests" in page.url
    other = pages.open(page.url, VIEWER)
    expect(other.locator(".figures button").nth(1)).to_have_attribute("aria-pressed", "true")
    assert other.locator(".figures").inner_text() == seen
    other.get_by_role("button", name=re.compile("Take out the filter owner support")).click()
    settle(other)
    assert "owner" not in other.url


def test_failed_requests_are_found_opened_and_exported(pages: Pages) -> None:
    page = pages.open("#/requests", VIEWER)
    page.get_by_role("button", name="Failed").click()
    settle(page)
    statuses = [line.locator("td").first.inner_text() for line in rows_of(page).all()]
    assert len(statuses) == 50
    assert all(re.match("[45]", status) for status in statuses)
    page.get_by_role("button", name="Show older").click()
    expect(rows_of(page)).to_have_count(100)
    rows_of(page).first.locator("a").click()
    drawer = page.get_by_role("complementary", name="The row that is open")
    name = drawer.get_by_role("heading", level=2).inner_text()
    assert re.fullmatch("[0-9a-f]{32}", name)
    expect(drawer).to_contain_text("request_id")
    expect(drawer).to_contain_text("never kept")
    for form in ("CSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("link", name=form, exact=True).click()
        assert name in Path(download.value.path()).read_text("utf-8")
    page.get_by_label("Field to filter by").select_option("id")
    page.get_by_label("Value to filter by").fill(name)
    page.get_by_label("Value to filter by").press("Enter")
    expect(rows_of(page)).to_have_count(1)


# What it does


def test_a_key_is_made_used_by_the_sdk_seen_live_and_revoked(pages: Pages, house: House, sdks: Sdks) -> None:
    tail = pages.open("#/requests", VIEWER)
    tail.get_by_role("button", name="Live").click()
    expect(tail.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "true")

    page = pages.open("", MANAGER)
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog", name="New key")
    form.get_by_label("Owner").fill("Zoë <b>")
    form.get_by_label("Budget").fill("five dollars")
    form.get_by_role("button", name="Make the key").click()
    expect(form.get_by_role("alert")).to_contain_text("budget")
    expect(form.get_by_label("Budget")).to_be_focused()
    (fault,) = pages.faults  # the browser's own word of the 400
    assert "status of 400" in fault
    pages.faults.clear()
    form.get_by_label("Budget").fill("5usd/day")
    form.get_by_role("button", name="Make the key").click()

    shown = page.get_by_role("dialog", name="The key’s secret")
    secret = shown.locator(".secret").inner_text()
    house.proxy.keystore.tokens.add(secret)  # which must not be found in any file or log
    page.keyboard.press("Escape")
    expect(shown).to_be_visible()
    assert_accessible(page, "the secret")
    shown.get_by_role("radio", name="Python").check()
    snippet = shown.locator("pre").inner_text()
    shown.get_by_role("button", name="I have stored it").click()
    drawer = page.get_by_role("complementary", name="The key that is open")
    expect(drawer.get_by_role("status")).to_contain_text("In force")

    assert sdks.program("python-openai", snippet, env={"OPENAI_API_KEY": OPENAI_KEY}).strip()
    live = rows_of(tail).filter(has_text="Zoë <b>")
    expect(live).to_have_count(1)
    expect(live.locator("td").first).to_have_text("200")
    page.get_by_role("button", name="Refresh").click()
    expect(drawer).to_contain_text("of $5.00")

    drawer.get_by_role("button", name="Disable").click()
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(drawer.locator(".sum strong")).to_have_text("disabled")
    assert refused(sdks, snippet) == "401 flowstack_key_disabled"
    drawer.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator(".beside > :first-child .result")).to_contain_text("In force")
    assert refused(sdks, snippet) == "401 invalid_flowstack_key"

    go(page, "#/audit")
    said = [row.inner_text() for row in rows_of(page).all()[:3]]
    assert [re.search("key (made|changed|removed)", line)[1] for line in said] == [  # type: ignore[index]
        "removed", "changed", "made",
    ]  # fmt: skip
    assert "Zoë <b>" in said[2]
    assert secret[16:] not in page.content()


def refused(sdks: Sdks, snippet: str) -> str:
    """What the SDK raises, in the status and the code of the answer."""
    text = f"import openai\ntry:\n{textwrap.indent(snippet, '    ')}\nexcept openai.AuthenticationError as error:\n"
    text += "    print(error.status_code, error.code)\n"
    return sdks.program("python-openai", text, env={"OPENAI_API_KEY": OPENAI_KEY}).strip()


def test_a_group_is_made_changed_and_removed(pages: Pages) -> None:
    page = pages.open("#/groups", MANAGER)
    expect(rows_of(page).filter(has_text="@search")).to_contain_text(re.compile(r"\d%.*\$\d"))
    page.get_by_role("button", name="New group").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("night.shift")
    form.get_by_label("Requests a minute").fill("1,200")
    form.get_by_role("button", name="Make the group").click()
    drawer = page.get_by_role("complementary", name="The group that is open")
    expect(drawer).to_contain_text("1,200")
    drawer.get_by_role("button", name="Change").click()
    page.get_by_role("dialog").get_by_label("Note").fill("from ten to six")
    page.get_by_role("dialog").get_by_role("button", name="Change").click()
    expect(drawer).to_contain_text("from ten to six")
    drawer.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator(".beside > :first-child .result")).to_contain_text("In force")
    expect(rows_of(page).filter(has_text="night.shift")).to_have_count(0)


def test_a_rotated_key_has_a_new_secret_and_keeps_the_old_one_for_the_grace(pages: Pages, house: House) -> None:
    old = house.new_key(owner="rotating")
    page = pages.open(f"#/keys?open={old[4:16]}", MANAGER)
    page.get_by_role("button", name="Rotate").click()
    page.get_by_role("radio", name="1 h", exact=True).check()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    shown = page.get_by_role("dialog", name="The key’s secret")
    secret = shown.locator(".secret").inner_text()
    house.proxy.keystore.tokens.add(secret)
    shown.get_by_role("button", name="I have stored it").click()
    assert secret != old
    assert (ask(house, secret), ask(house, old)) == (200, 200)


# How it is read: by the keyboard, on a phone, in the dark, by a screen reader


OPENED = {
    **{view: f"#/{view}" for view in VIEWS}, "a row": "#/requests?row={row}", "a key": "#/keys?open={key}",
    "a group": "#/groups?open=search",
}  # fmt: skip


def opened(house: House, view: str) -> str:
    (row,) = house.get("requests?limit=1&status=504")["requests"]
    return OPENED[view].format(row=row["request_id"], key=row["key_id"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(dark: bool, pages: Pages, house: House) -> None:
    rules = ("color-contrast",) if dark else ()  # all else is the same in both
    page = pages.open("#/overview", MANAGER, dark=dark)
    for view in OPENED:
        go(page, opened(house, view))
        assert_accessible(page, view, *rules)
    for metric in ("requests", "tokens", "duration"):
        go(page, f"#/overview?metric={metric}&table=1")
        assert_accessible(page, f"the table of {metric}", *rules)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_accessible(page, "the keyboard", *rules)
    page.keyboard.press("Escape")
    go(page, "#/keys")
    page.get_by_role("button", name="New key").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_accessible(page, "the form of a key", *rules)
    assert_accessible(pages.open("", dark=dark), "the sign-in form", *rules)


def test_nothing_makes_a_phone_scroll_sideways(pages: Pages, house: House) -> None:
    page = pages.open("#/overview", MANAGER, size=PHONE)
    for view in OPENED:
        go(page, opened(house, view))
        assert_fits(page)
    go(page, "#/keys")
    page.get_by_role("button", name="New key").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_fits(page)
    assert_fits(pages.open("", size=PHONE))


def focused(page: Page) -> str:
    """What has the keyboard: its name, in lower case."""
    return str(page.evaluate("() => (document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()"))


def test_the_tab_key_goes_from_the_top_to_the_content_in_reading_order(pages: Pages) -> None:
    page = pages.open("#/requests", VIEWER)
    passed = []
    for _ in range(9):
        page.keyboard.press("Tab")
        passed.append(focused(page))
    assert passed == ["To the content", "Flowstack", "Overview", "Requests", "Keys", "Groups", "Audit", "Display",
                      "Sign out"]  # fmt: skip
    box = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert box == "solid"
    page.reload()
    settle(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert "#/requests" in page.url  # the link's target must not take the view's place in the address


def test_rows_are_walked_opened_and_closed_by_keys(pages: Pages) -> None:
    page = pages.open("", VIEWER)
    page.keyboard.press("g")
    page.keyboard.press("r")
    expect(rows_of(page)).to_have_count(50)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(rows_of(page).nth(1).locator("a")).to_be_focused()
    page.keyboard.press("Enter")
    drawer = page.get_by_role("complementary", name="The row that is open")
    expect(drawer).to_be_visible()
    first = rows_of(page).nth(1).get_attribute("data-key")
    expect(drawer.get_by_role("heading", level=2)).to_have_text(first or "?")
    page.keyboard.press("j")
    second = rows_of(page).nth(2).get_attribute("data-key")
    expect(drawer.get_by_role("heading", level=2)).to_have_text(second or "?")
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    expect(rows_of(page).nth(2).locator("a")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Value to filter by")).to_be_focused()
    page.keyboard.type("gpt-4.1-2025-04-14")
    page.keyboard.press("Enter")
    expect(page.locator(".chip")).to_contain_text("gpt-4.1-2025-04-14")
    page.locator("main").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("3")
    expect(page.get_by_role("radio", name="30 d")).to_be_checked()


def test_a_chart_is_read_step_by_step_by_the_arrow_keys(pages: Pages) -> None:
    page = pages.open("", VIEWER)
    plot = page.get_by_role("img", name=re.compile("arrow keys"))
    plot.focus()
    page.keyboard.press("ArrowLeft")
    said = page.locator("#said")
    today = datetime.now(UTC).strftime("%-d %b")
    expect(said).to_have_text(re.compile(rf"^{today}: .*\$"))
    page.keyboard.press("Home")
    expect(said).not_to_have_text(re.compile(rf"^{today}"))


# Other people's text


@pytest.mark.parametrize("size", [None, PHONE], ids=["desk", "phone"])
def test_hostile_texts_neither_run_nor_break_the_layout(
    size: dict[str, int] | None, pages: Pages, house: House
) -> None:
    owner = f"{HOSTILE}{LONG}"[:256]  # longer ones no keystore takes
    key = house.new_key(owner=owner, note=RIGHT_TO_LEFT)
    models = [f"<script>alert(1)</script>{size is None}", LONG, f"\u202e{RIGHT_TO_LEFT}\u2067👩\u200d👩\u200d👧"]
    for model in models:
        more = {"Flowstack_Attribute_Team": HOSTILE, "Flowstack_Attribute_Long": LONG, "User_Agent": HOSTILE}
        assert ask(house, key, model=model, **more) == 200
    now = datetime.now(UTC)
    foreign = row(secrets.randbits(62), key_id=key[4:16], owner=LONG, group=HOSTILE, started_at=now, upstream=HOSTILE)
    with open(house.proxy.state_path / "ledger" / f"{now:%Y-%m-%d}.w7.jsonl", "ab") as journal:
        journal.write(line_of(foreign))
    where = f"where={quote(f'key={key[4:16]}')}"
    eventually(lambda: house.get(f"report?by=&{where}")["total"]["requests"] == len(models) + 1, "they are indexed")
    rows = house.get(f"requests?{where}")["requests"]
    assert len(rows) == len(models) + 1

    page = pages.open(f"#/overview?{where}", MANAGER, size=size)
    page.on("dialog", lambda dialog: pages.faults.append(f"it ran: {dialog.message}"))
    assert_fits(page)
    splits = ("owner", "group", "upstream", "attribute:team", "attribute:long", "model")
    views = [f"#/overview?{where}&by={by}" for by in splits]
    views += [f"#/requests?{where}", *(f"#/requests?{where}&row={row['request_id']}" for row in rows)]
    views += [f"#/keys?open={key[4:16]}", f"#/overview?where={quote(f'attribute:team={HOSTILE}')}"]
    for view in views:
        go(page, view)
        assert_fits(page)
        assert page.locator("main script, main img").count() == 0
    go(page, f"#/requests?{where}&row={next(one['request_id'] for one in rows if one['owner'] != LONG)}")
    drawer = page.get_by_role("complementary", name="The row that is open")
    expect(drawer).to_contain_text(HOSTILE)
    go(page, f"#/keys?open={key[4:16]}")
    expect(page.get_by_role("complementary")).to_contain_text(owner)
    expect(page.get_by_role("complementary")).to_contain_text(RIGHT_TO_LEFT)
    assert_accessible(page, "the key with hostile texts")


# The holder of a key


def test_a_keys_holder_sees_its_own_use_and_nothing_else(pages: Pages, house: House) -> None:
    key = house.new_key(owner="<i>Ida</i>", budget="2usd/day", rpm="60")
    for _ in range(3):
        assert ask(house, key) == 200
    eventually(lambda: house.get(f"report?by=&where=key={key[4:16]}")["total"]["requests"] == 3, "they are indexed")
    for dark in (False, True):
        page = pages.open(f"{house.proxy.url}/flowstack/", dark=dark)
        assert_accessible(page, "the holder's sign-in")
        page.get_by_label("Flowstack key").fill(key)
        page.get_by_label("Flowstack key").press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("<i>Ida</i>")
        settle(page)
        assert_accessible(page, "the holder's page")
        expect(page.locator(".standings")).to_contain_text("of $2.00")
        requests = page.locator(".figures").get_by_role("button", name=re.compile("^Requests"))
        expect(requests.locator(".value")).to_have_text("3")
        assert "search team" not in page.content()
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert_fits(page)
        page.reload()
        expect(page.get_by_label("Flowstack key")).to_be_empty()
