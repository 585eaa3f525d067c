/** Requests: the rows of the ledger, what ended last first; searched, followed live, opened and exported. */

import { exportAddress, get } from "./api.js";
import { button, copier, fill, h, notice, say, table, text } from "./dom.js";
import { bytes, count, DASH, duration, exact, percent, time, usd, zoneName } from "./format.js";
import { asked, filters, periods } from "./filters.js";
import { fault } from "./overview.js";
import { change, FIELDS, iso, link, period, route } from "./state.js";

const PAGE = 50, KEPT = 1000, EVERY = 2000;

const FAILED = ["status=4*", "status=5*"];

/** Fields of a row by what they are about; one that is not named here comes last. */
const PARTS = [
  ["Who", ["key_id", "owner", "group", "attributes", "client_addr", "user_agent"]],
  ["What", ["method", "path", "model_requested", "model", "service_tier", "stream", "upstream", "node"]],
  ["What came of it", ["status", "end", "error_code", "attempts", "attempts_detail", "requests"]],
  ["Usage and cost", ["prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens", "total_tokens", "usage_details", "usage_source", "usage_asked_by", "cost_usd", "price_date", "priced_by", "unpriced"]],
  ["Time and size", ["started_at", "overhead_ms", "first_byte_ms", "duration_ms", "bytes_in", "bytes_out"]],
  ["Ids", ["request_id", "upstream_request_id", "parent_request_id", "v"]],
];

/** What failed, in a word; nothing where all went well. */
const trouble = (row) => row.error_code ?? (row.end === "complete" ? (row.status >= 400 ? "by the provider" : null) : row.end.replace("_", " "));
const failed = (row) => row.status >= 400 || !["complete", "client_gone"].includes(row.end);

export function requests(root, context) {
  let rows = [], older = null, newer = null, searched = null, full = true, node = null;
  let stop = new AbortController();
  let timer = null, asking = "", fresh = 0;
  const bars = h("div", { class: "toolbar" }), list = h("div", { class: "place list" }), foot = h("div", { class: "foot" }), side = h("aside", { class: "drawer", "aria-label": "The row that is open", tabindex: "-1", hidden: true });
  fill(root, h("h1", { class: "unseen" }, "Requests"), bars, h("div", { class: "beside" }, h("div", null, list, foot), side));

  const isLive = () => route().params.get("live") === "1";
  const query = (found, more = []) => [["since", iso(found.since)], ...(route().params.has("until") ? [["until", iso(found.until)]] : []), ...asked(route().params, true), ...more];

  async function show() {
    const { params } = route();
    const found = period(params, context.now());
    toolbar(found, params);
    drawer(params.get("row"));
    const now = JSON.stringify([params.get("since"), params.get("until"), asked(params, true)]);
    clearInterval(timer);
    if (isLive()) timer = setInterval(follow, EVERY);
    if (now === asking && show.again !== true) return mark();
    show.again = false;
    asking = now;
    stop.abort();
    stop = new AbortController();
    rows = [];
    list.setAttribute("aria-busy", "true");
    await load(found);
  }

  function toolbar(found, params) {
    const all = params.getAll("where");
    const only = FAILED.every((one) => all.includes(one));
    fill(bars, periods(found), h("div", { class: "filters" },
      button("Failed", () => change({ where: only ? all.filter((one) => !FAILED.includes(one)) : [...all.filter((one) => !one.startsWith("status=")), ...FAILED] }), { "aria-pressed": String(only), class: "toggle", title: "Answered with 4xx or 5xx" }),
      filters(true, found.since)),
      h("div", { class: "end" },
        button("Live", () => change({ live: isLive() ? null : "1", until: null }), { "aria-pressed": String(isLive()), class: "toggle live-toggle", title: "New rows as they come (l)" }),
        button("Refresh", again, { title: "r" }),
        ["csv", "json"].map((form) => h("a", { class: "button", href: exportAddress(query(found, [["format", form]])), download: `requests.${form}`, title: "What fits the period and the filters, 10,000 rows at most" }, form.toUpperCase())),
        context.linker(found)));
  }

  function again() { show.again = true; show(); }

  async function load(found, cursor = null) {
    const { signal } = stop;
    try {
      const answer = await get("requests", query(found, [["limit", PAGE], ...(cursor ? [["cursor", cursor], ["direction", "older"]] : [])]), { signal });
      rows.push(...answer.requests);
      ({ older, node } = answer);
      full = answer.requests.length === PAGE;
      searched = answer.searched_from;
      if (!cursor) newer = answer.newer;
      draw(found);
      say(cursor ? `${answer.requests.length} rows more` : `${rows.length} rows`);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      fill(cursor ? foot : list, fault(error, () => load(found, cursor)));
    }
    list.removeAttribute("aria-busy");
  }

  async function follow() {
    if (document.hidden || newer == null || follow.busy) return;
    follow.busy = true;
    try {
      const found = period(route().params, context.now());
      const answer = await get("requests", query(found, [["limit", PAGE], ["cursor", newer], ["direction", "newer"]]), { quiet: true, signal: stop.signal });
      newer = answer.newer;
      if (answer.requests.length) {
        rows = [...answer.requests, ...rows].slice(0, KEPT);
        fresh = answer.requests.length;
        draw(found);
        fresh = 0;
      }
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) fill(foot, h("p", { class: "bad" }, `Live tail: ${error.message} It goes on when the service answers.`));
    } finally { follow.busy = false; }
  }

  function draw(found) {
    const kept = document.activeElement?.closest?.("tr")?.dataset.key;
    if (!rows.length) {
      const any = asked(route().params, true).length;
      fill(list, older ? notice(`Nothing found back to ${time(searched)} ${zoneName()}`, "The search looks at newest rows first and stops after a while.", [button("Search further back", () => load(found, older))])
        : notice("No requests", any ? "No request in this period fits the filters. Take a filter out, or a longer period." : "No request came in this period. Each request with a valid key has a row here the moment its answer ends.",
          [h("a", { class: "button", href: link("requests", { since: "30d", until: null }, "all") }, "Show 30 days"), any ? h("a", { class: "button", href: link("requests", {}, ["since"]) }, "Without filters") : null]));
      fill(foot, whose());
      return;
    }
    fill(list, h("div", { class: "scroll" }, table("Requests, what ended last first", COLUMNS, rows.map((row, nth) => Object.assign(row, { class: [failed(row) ? "failed" : "", nth < fresh ? "fresh" : ""].join(" ").trim() || null })),
      { key: (row) => row.request_id, open: (row) => open(row.request_id), chosen: route().params.get("row") })));
    if (kept) list.querySelector(`tr[data-key="${CSS.escape(kept)}"] a`)?.focus({ preventScroll: true });
    fill(foot, h("p", null, h("span", { class: "muted" }, `${count(rows.length)} rows, back to ${time(rows.at(-1).started_at, "second")} ${zoneName()}. `),
      older ? button(full ? "Show older" : "Search further back", (event) => { event.target.disabled = true; load(found, older); }) : h("span", { class: "muted" }, "These are all of the period.")),
      whose(),
      h("p", { class: "muted" }, "Bodies are never kept: a row says who asked for what, and what it used and cost, and not what was said."));
  }

  /** Whose rows are listed, where there are other machines. */
  const whose = () => (node ? h("p", { class: "muted" }, "These are the requests of this machine, ", h("b", null, h("bdi", null, node)), ". The figures are those of all machines, and a request opened by its id may be of any.") : null);

  const open = (id) => change({ row: id });

  function mark() {
    for (const line of list.querySelectorAll("tr[data-key]"))
      if (line.dataset.key === route().params.get("row")) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
  }

  async function drawer(id) {
    if (!id) {
      const had = side.dataset.row;
      side.hidden = true;
      delete side.dataset.row;
      if (had) list.querySelector(`tr[data-key="${CSS.escape(had)}"] a`)?.focus({ preventScroll: true });
      return;
    }
    if (side.dataset.row === id) return;
    side.dataset.row = id;
    side.hidden = false;
    side.setAttribute("aria-busy", "true");
    try {
      const answer = await get(`requests/${encodeURIComponent(id)}`);
      if (side.dataset.row === id) fill(side, opened(answer));
      say("The row is open");
    } catch (error) {
      if (error.status !== 401) fill(side, head(id), fault(error, () => { delete side.dataset.row; drawer(id); }));
    }
    side.removeAttribute("aria-busy");
    side.scrollTop = 0;
  }

  const head = (id) => h("header", null, h("h2", null, h("span", { class: "mono" }, text(id))), copier(id, "Copy id"), button("×", () => change({ row: null }), { class: "close", "aria-label": "Close the row" }));

  function opened({ request: row, fields }) {
    const known = new Map(fields.map((one) => [one.name, one]));
    const named = PARTS.flatMap(([, names]) => names);
    const rest = fields.map((one) => one.name).filter((name) => !named.includes(name));
    const wait = row.first_byte_ms == null ? null : row.first_byte_ms - (row.overhead_ms ?? 0);
    const parts = [["Flowstack’s own", row.overhead_ms, "s6"], ["waiting for the upstream", wait ?? row.duration_ms - (row.overhead_ms ?? 0), "s2"], ["the answer", wait == null ? null : row.duration_ms - row.first_byte_ms, "s1"]].filter(([, ms]) => ms != null && ms >= 0);
    return [
      head(row.request_id),
      h("p", { class: "sum" }, h("strong", { class: failed(row) ? "bad" : null }, row.status ?? "no answer", trouble(row) ? ` ${trouble(row)}` : ""), " · ", text(row.model ?? row.model_requested, "no model"), " · ", usd(row.cost_usd), " · ", duration(row.duration_ms)),
      row.duration_ms > 0 ? h("div", { class: "times" }, h("div", { class: "timeline", "aria-hidden": "true" }, parts.map(([, ms, colour]) => h("i", { class: colour, vars: { part: `${(ms / row.duration_ms) * 100}%` } }))),
        h("p", { class: "muted" }, parts.map(([name, ms, colour]) => h("span", null, h("i", { class: `swatch ${colour}` }), `${name} ${duration(ms)}`)))) : null,
      h("p", { class: "muted" }, row.attempts === 0 ? "It was never sent to an upstream." : row.attempts > 1 ? `It was sent ${row.attempts} times.` : null),
      [...PARTS, ["More", rest]].map(([title, names]) => {
        const here = names.filter((name) => name in row);
        return here.length ? h("section", null, h("h3", null, title), h("dl", { class: "fields" }, here.map((name) => field(name, row[name], known.get(name) ?? {})))) : null;
      }),
      h("p", { class: "muted" }, "The bodies of request and answer are never kept."),
    ];
  }

  function field(name, value, { meaning, unit }) {
    const filter = { key_id: "key", error_code: "error" }[name] ?? name;
    const linked = FIELDS.includes(filter) && typeof value !== "object" ? h("a", { href: link("requests", { where: [...new Set([...route().params.getAll("where"), `${filter}=${value}`])], row: route().params.get("row") }), title: "Only these" }, whole(value)) : null;
    return h("div", { class: value == null ? "unknown" : null }, h("dt", null, name), h("dd", null, linked ?? shown(name, value, unit)), h("dd", { class: "meaning" }, meaning));
  }

  return {
    show,
    refresh: again,
    redraw() { if (rows.length) draw(period(route().params, context.now())); delete side.dataset.row; drawer(route().params.get("row")); },
    close() { stop.abort(); clearInterval(timer); },
    keys(key) {
      if (key === "Escape") { if (!side.hidden) change({ row: null }); return true; }
      if (key === "l") { change({ live: isLive() ? null : "1", until: null }); return true; }
      const step = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1 }[key];
      if (!step) return false;
      const links = [...list.querySelectorAll("tbody th a")];
      const at = links.indexOf(document.activeElement);
      const from = at >= 0 ? at : links.findIndex((one) => one.closest("tr").ariaCurrent === "true");
      const to = links[Math.max(0, Math.min(links.length - 1, from + step))];
      to?.focus();
      to?.scrollIntoView({ block: "nearest" });
      if (!side.hidden && to) change({ row: to.closest("tr").dataset.key }, true);
      return true;
    },
  };
}

const whole = (value) => h("bdi", { class: "whole" }, String(value));

/** A value of a row, whole. */
function shown(name, value, unit) {
  if (value == null) return h("span", { class: "none" }, "not known");
  if (Array.isArray(value) && value.some((one) => one && typeof one === "object")) {
    const names = [...new Set(value.flatMap((one) => Object.keys(one ?? {})))];
    return h("div", { class: "scroll" }, table(name, names.map((head) => ({ head, cell: (one) => shown(head, one?.[head]) })), value));
  }
  if (typeof value === "object") return h("dl", { class: "nested" }, Object.entries(value).map(([key, one]) => [h("dt", null, whole(key)), h("dd", null, shown(key, one))]));
  if (name === "started_at") return exact(value);
  if (name === "cost_usd") return `$${value}`;
  if (unit === "ms" || name.endsWith("_ms")) return duration(value);
  if (name.startsWith("bytes_")) return `${bytes(value)}${value >= 1000 ? ` (${count(value)} bytes)` : ""}`;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return `${count(value)}${unit ? ` ${unit}` : ""}`;
  return whole(value);
}

/** Day and time; a narrow place leaves the day out of what is younger than a day. */
function began(at) {
  const [day, clock] = time(at, "second").split(/ (?=\S+$)/);
  return [h("span", { class: Date.now() - new Date(at) < 86_400_000 ? "mid" : null }, day, " "), clock];
}

const COLUMNS = [
  { head: "Began", class: "when nowrap", cell: (row) => h("a", { href: link("requests", { row: row.request_id }, "all"), title: exact(row.started_at) }, began(row.started_at)) },
  { head: "Status", class: "nowrap", cell: (row) => [h("span", { class: failed(row) ? "bad" : null }, row.status ?? DASH), trouble(row) ? h("span", { class: "why" }, " ", text(trouble(row))) : null, row.requests > 1 ? h("span", { class: "muted" }, ` ×${count(row.requests)}`) : null] },
  { head: "Model", class: "clip", cell: (row) => [text(row.model ?? row.model_requested, DASH), h("span", { class: "second" }, text(row.owner, row.key_id))] },
  { head: "Owner", class: "clip wrapped", cell: (row) => text(row.owner, "(none)") },
  { head: "Key", class: "mono wide", cell: (row) => row.key_id },
  { head: "Upstream", class: "wide clip", cell: (row) => text(row.upstream, DASH) },
  { head: "In", class: "half", title: "Tokens of the input", number: true, cell: (row) => count(row.prompt_tokens) },
  { head: "Cached", title: "Tokens of the input that came from the provider’s cache", number: true, class: "wide muted", cell: (row) => (row.cached_tokens ? percent(row.cached_tokens / row.prompt_tokens) : row.cached_tokens === 0 ? "0%" : DASH) },
  { head: "Out", class: "half", title: "Tokens of the output, reasoning included", number: true, cell: (row) => count(row.completion_tokens) },
  { head: "Cost", number: true, cell: (row) => usd(row.cost_usd) },
  { head: "First byte", number: true, class: "wide", cell: (row) => duration(row.first_byte_ms) },
  { head: "Duration", number: true, class: "mid", cell: (row) => duration(row.duration_ms) },
  { head: "Tries", title: "How often it was sent to the upstream", number: true, class: "wide muted", cell: (row) => row.attempts },
];
