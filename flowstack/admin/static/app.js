/** The page: what stands on top of each view, which view is shown, and the keyboard. */

import { ask, session } from "./api.js";
import { audit } from "./audit.js";
import { button, choice, copy, dialog, fill, h, keepFocus, notice, say, showWhole } from "./dom.js";
import { useZone, zoneName } from "./format.js";
import { keys } from "./keys.js";
import { overview } from "./overview.js";
import { requests } from "./requests.js";
import { signIn } from "./signin.js";
import { change, iso, link, remembered, route } from "./state.js";

const VIEWS = { overview: ["Overview", overview], requests: ["Requests", requests], keys: ["Keys", keys("keys")], groups: ["Groups", keys("groups")], audit: ["Audit", audit] };

const SHORTCUTS = [
  ["g o, g r, g k, g g, g a", "Overview, Requests, Keys, Groups, Audit"], ["/", "to the filter, or the search"], ["1 2 3 4", "24 hours, 7 days, 30 days, this month"],
  ["j k, ↓ ↑", "next and previous row"], ["Enter", "open the row"], ["Esc", "close what is open"], ["l", "live tail on and off"], ["r", "refresh"],
  ["z", "times in UTC or in the browser’s zone"], ["c", "copy a link that shows what you see, with its times fixed"], ["?", "this list"],
];

const main = document.getElementById("main"), top_ = document.getElementById("top");
const context = { now: () => Date.now() + (context.session?.ahead ?? 0), linker };
let view = null, shown = null;

/** A button that copies the address, with the period's ends in place of “the last 7 days”. */
function linker(found) {
  const it = button("Copy link", async () => {
    const address = new URL(link(route().view, { since: iso(found.since), until: iso(found.until), step: found.step }, "all"), location.href).href;
    it.textContent = (await copy(address)) ? "Copied" : "Not copied";
    setTimeout(() => { it.textContent = "Copy link"; }, 2000);
  }, { title: "A link that shows what you see, with its times fixed (c)", "data-key": "c" });
  return it;
}

function theme(name = remembered.get("theme", "auto")) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

function head() {
  const { signed_in: signedIn, role, token } = context.session;
  fill(top_,
    h("a", { class: "name", href: link("overview") }, "Flowstack"),
    signedIn ? h("nav", { "aria-label": "Views" }, Object.entries(VIEWS).map(([name, [label]]) =>
      h("a", { href: link(name), "aria-current": route().view === name ? "page" : null }, label))) : h("span", { class: "grow" }),
    h("div", { class: "tools" },
      zoneName() === "UTC" && Intl.DateTimeFormat().resolvedOptions().timeZone === "UTC" ? h("span", { class: "muted" }, "UTC")
        : button(zoneName().replaceAll("_", " "), zone, { title: "Times in UTC or in the browser’s zone (z)", "aria-label": `Times are in ${zoneName()}; switch` }),
      button("Display", display, { title: "Light, dark, keyboard (?)" }),
      signedIn && role === "manager" ? h("span", { class: "muted role" }, "manager") : null,
      signedIn && token !== false ? button("Sign out", signOut) : null));
}

function zone() {
  const to = remembered.get("zone", "utc") === "utc" ? "local" : "utc";
  remembered.set("zone", to);
  useZone(to);
  head();
  view?.redraw();
  say(`Times are in ${zoneName()}`);
}

function display() {
  const about = context.session;
  dialog("Display and keyboard",
    h("div", { class: "rows" },
      h("div", { class: "pair" }, h("span", null, "Colours"), choice("theme", "Colours", [["auto", "As the system"], ["light", "Light"], ["dark", "Dark"]], remembered.get("theme", "auto"), (to) => { remembered.set("theme", to); theme(to); view?.redraw(); })),
      h("div", { class: "pair" }, h("span", null, "Times"), choice("zone", "Times", [["utc", "UTC"], ["local", Intl.DateTimeFormat().resolvedOptions().timeZone]], remembered.get("zone", "utc"), (to) => { if (to !== remembered.get("zone", "utc")) zone(); })),
      h("div", { class: "pair" }, h("span", null, "Keys of one letter"), choice("keyboard", "Keys of one letter", [["on", "On"], ["off", "Off"]], remembered.get("keyboard", "on"), (to) => remembered.set("keyboard", to)))),
    h("table", { class: "shortcuts" }, h("caption", { class: "unseen" }, "Keyboard"), h("tbody", null, SHORTCUTS.map(([keys_, words]) =>
      h("tr", null, h("th", { scope: "row" }, keys_.split(", ").map((one) => h("kbd", null, one))), h("td", null, words))))),
    h("p", { class: "muted" }, `Flowstack ${about.version ?? ""}${about.build ? `, ${about.build}` : ""}. `, h("a", { href: "api/v1/openapi.json" }, "The API"), " gives programs the same figures."));
}

async function signOut() {
  await ask("DELETE", "api/v1/session").catch(() => {});
  await start();
}

function show() {
  if (!context.session?.signed_in) return;
  const { view: name } = route();
  if (!VIEWS[name]) return location.replace(link("overview"));
  const [label, make] = VIEWS[name];
  if (shown !== name) {
    view?.close();
    document.title = `${label} · Flowstack`;
    if (shown) { scrollTo(0, 0); main.focus({ preventScroll: true }); say(label); }
    shown = name;
    main.className = name;
    view = make(main, context);
  }
  head();
  keepFocus(main, () => view.show());
}

/** Sign in by the code of a link, which stands behind the # and goes out of the address and the history. */
async function follow() {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
  if (!code) return start();
  history.replaceState(null, "", location.pathname);
  const fault = await ask("POST", "api/v1/session/code", { body: { code } }).then(() => null, (error) => error);
  await start();
  if (fault && !context.session?.signed_in) document.getElementById("fault").textContent = fault.message;
}

async function start() {
  view?.close();
  view = shown = null;
  try {
    context.session = await session();
  } catch (error) {
    return void fill(main, notice(error.message, "Is the service running, and the network up?", [button("Try again", start)], "fault"));
  }
  head();
  if (context.session.signed_in) return show();
  main.className = "signin";
  document.title = "Sign in · Flowstack";
  signIn(main, start);
}

let before = "";

function press(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input:not([type=radio]), select, textarea, dialog")) return;
  if (target.closest(".plot, input") && key.length > 1) return; // arrows move in these
  if (key === "Escape") return void view?.keys?.(key);
  if (remembered.get("keyboard", "on") === "off" || !context.session?.signed_in) return;
  const chord = before === "g" ? { o: "overview", r: "requests", k: "keys", g: "groups", a: "audit" }[key] : null;
  before = before === "g" ? "" : key;
  if (chord) location.hash = link(chord);
  else if (key === "/") (main.querySelector("#filter-value") ?? main.querySelector("input[type=search]"))?.focus();
  else if (key === "?") display();
  else if (key === "z") zone();
  else if (key === "r") (view.refresh ?? view.show)();
  else if (key === "c") main.querySelector("[data-key=c]")?.click();
  else if ("1234".includes(key) && main.querySelector("input[name=period]")) change({ since: ["24h", "7d", "30d", "month"][key - 1], until: null, step: null });
  else if (!view?.keys?.(key)) return;
  event.preventDefault();
}

theme();
useZone(remembered.get("zone", "utc"));
showWhole();
addEventListener("hashchange", show);
addEventListener("signed-out", () => { if (context.session?.signed_in) start(); });
addEventListener("keydown", press);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); }); // the address names the view
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view?.redraw());
follow();
