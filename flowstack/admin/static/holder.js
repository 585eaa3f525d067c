/** The key holder's page: what one key used, may use and has left. The key stays in this page's memory, and goes with it. */

import { ask } from "./api.js";
import { button, choice, dialog, fill, h, notice, showWhole, text } from "./dom.js";
import { ahead, time, useZone } from "./format.js";
import { overview } from "./overview.js";
import { standing } from "./standing.js";
import { remembered } from "./state.js";

const main = document.getElementById("main"), top_ = document.getElementById("top");
let view = null;

function theme(name = remembered.get("theme", "auto")) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

function head(signedIn) {
  const local = Intl.DateTimeFormat().resolvedOptions().timeZone;
  fill(top_, h("span", { class: "name" }, "Flowstack"), h("span", { class: "grow" }), h("div", { class: "tools" },
    button("Display", () => dialog("Display",
      h("div", { class: "rows" },
        h("div", { class: "pair" }, h("span", null, "Colours"), choice("theme", "Colours", [["auto", "As the system"], ["light", "Light"], ["dark", "Dark"]], remembered.get("theme", "auto"), (to) => { remembered.set("theme", to); theme(to); view?.redraw(); })),
        h("div", { class: "pair" }, h("span", null, "Times"), choice("zone", "Times", [["utc", "UTC"], ["local", local]], remembered.get("zone", "utc"), (to) => { remembered.set("zone", to); useZone(to); view?.redraw(); }))))),
    signedIn ? button("Sign out", signIn) : null));
}

/**
 * The report of one key. The service takes one question of a key at a time, so they wait for each other; and its answers
 * are short, so they are put in order and cut here.
 */
function reporter(headers) {
  const answers = new Map();
  let last = Promise.resolve();
  return async (pairs, options) => {
    const params = pairs.filter(([name]) => ["by", "since", "until"].includes(name));
    const name = JSON.stringify(params);
    if (!answers.has(name)) {
      const answer = last.then(() => ask("GET", "v1/usage", { params, headers, ...options }));
      last = answer.catch(() => answers.delete(name));
      answers.set(name, answer);
    }
    const answer = await answers.get(name);
    const { sort, limit = Infinity } = Object.fromEntries(pairs);
    const groups = sort ? answer.groups.toSorted((a, b) => (b[sort] ?? -1) - (a[sort] ?? -1)) : answer.groups;
    return { ...answer, groups: groups.slice(0, limit), left_out: Math.max(0, groups.length - limit) };
  };
}

function signIn() {
  view?.close();
  view = null;
  head(false);
  main.className = "signin";
  const fault = h("p", { id: "fault", class: "bad", role: "alert" });
  const key = h("input", { id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false", placeholder: "fsk-…", "aria-describedby": "fault advice" });
  const submit = h("button", { type: "submit", class: "main" }, "Show");
  fill(main, h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    submit.disabled = true;
    fault.textContent = "";
    const headers = { "Flowstack-Auth": `Bearer ${key.value.trim()}` };
    try {
      show(await ask("GET", "v1/key", { headers }), headers);
    } catch (error) {
      fault.textContent = error instanceof TypeError ? "This is no key: it has characters that no key has." : error.message;
      key.setAttribute("aria-invalid", "true");
      submit.disabled = false;
      key.select();
    }
  } },
    h("h1", null, "My key"), h("label", { for: "key" }, "Flowstack key"), key, fault, submit,
    h("p", { id: "advice", class: "muted" }, "What it used, may use and has left. The key is kept by this page until it is closed or reloaded, and nowhere else.")));
  key.focus();
}

function show(key, headers) {
  const now = () => Date.now();
  const standings = h("div", { class: "standings" }, [
    ...key.budgets.map((one) => ({ limit: "budget", amount_usd: one.limit_usd, resets_at: one.reset_at, ...one })),
    ...key.limits.map((one) => ({ ...one, limit: one.name, most: one.limit, left: one.remaining, resets_at: one.reset_at })),
  ].map((one) => standing({ ...one, group: one.of === "group" ? key.group : null }, now())));
  if (!standings.childNodes.length) fill(standings, notice("No limits", "No limit stands for this key."));
  head(true);
  main.className = "mine";
  const items = [["key", key.id], ["group", key.group], ["valid", key.expires_at ? `until ${time(key.expires_at, "date")}, ${ahead(key.expires_at, now())}` : "without end"],
    ...["models", "endpoints", "upstreams", "allow_ip"].map((name) => [name.replace("allow_ip", "from"), key[name]?.join(", ")])].filter(([, value]) => value);
  const place = h("div");
  fill(main, h("h1", null, text(key.owner, "My key")), h("p", { class: "about" }, items.map(([name, value]) => h("span", null, name, " ", h("b", null, h("bdi", null, value))))), place);
  view = overview(place, { now, mine: { report: reporter(headers), standings } });
  view.show();
  main.focus({ preventScroll: true });
}

theme();
useZone(remembered.get("zone", "utc"));
showWhole();
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", () => view?.show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view?.redraw());
signIn();
