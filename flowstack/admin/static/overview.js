/** Overview: what was spent, by whom, on what; what fails, what is slow, who is near a budget; and what goes on now. */

import { get } from "./api.js";
import { asTable, chart, stepName } from "./chart.js";
import { bar, button, fill, h, keepFocus, notice, select, table, text } from "./dom.js";
import { ago, ahead, bytes, change as more, count, DASH, duration, durationShort, exact, percent, short, shortest, spell, time, usd, usdShort } from "./format.js";
import { asked, filters, inWords, periods } from "./filters.js";
import { change, FIELDS, iso, link, narrowed, period, route, steps } from "./state.js";

const TOP = 6;
const EVERY = 60_000, LIVE_EVERY = 3000;

const share = (figures) => (figures.requests ? figures.errors / figures.requests : null);
const least = (value, missing) => (missing ? h("span", { title: "At least: some rows do not tell this figure." }, value, "+") : value);
const times = (name) => ({
  value: (figures) => figures[`${name}_p95_ms`], show: duration, axis: durationShort, sort: `${name}_p95_ms`, lines: name,
  detail: (figures) => [`p50 ${duration(figures[`${name}_p50_ms`])}`, `p99 ${duration(figures[`${name}_p99_ms`])}`],
});

/** The figures: label, what they are of a report's line, how they are shown, and what stands below. */
const METRICS = {
  spend: { label: "Spend", value: (figures) => figures.cost_usd, show: usd, axis: usdShort, sort: "cost_usd", missing: (figures) => figures.without_cost,
    detail: (figures) => [`${usd(figures.requests ? figures.cost_usd / figures.requests : null)} a request`, figures.without_cost ? `${count(figures.without_cost)} without a price` : ""] },
  requests: { label: "Requests", value: (figures) => figures.requests, show: count, axis: shortest, sort: "requests",
    detail: (figures, minutes) => [figures.requests >= minutes ? `${short(figures.requests / minutes)} a minute` : `${short((figures.requests / minutes) * 60)} an hour`] },
  errors: { label: "Errors", value: (figures) => figures.errors, show: count, axis: shortest, sort: "errors", main: share, mainShow: percent,
    detail: (figures) => [`${count(figures.errors)} of ${count(figures.requests)}`] },
  tokens: { label: "Tokens", value: (figures) => figures.total_tokens, show: short, axis: shortest, sort: "total_tokens", missing: (figures) => figures.without_total_tokens,
    detail: (figures) => [`in ${short(figures.prompt_tokens)}, cached ${short(figures.cached_tokens)}`, `out ${short(figures.completion_tokens)}, reasoning ${short(figures.reasoning_tokens)}`] },
  connections: { label: "WebSockets", value: (figures) => figures.connections, show: count, axis: shortest, sort: "connections",
    detail: () => ["connections that ended"] },
  duration: { label: "Duration, p95", ...times("duration") },
  first_byte: { label: "First byte, p95", ...times("first_byte") },
  overhead: { label: "Flowstack’s own, p95", ...times("overhead") },
};

const KINDS = [
  ["input, not cached", (figures) => figures.prompt_tokens - (figures.cached_tokens ?? 0)], ["input, cached", (figures) => figures.cached_tokens ?? 0],
  ["output", (figures) => figures.completion_tokens - (figures.reasoning_tokens ?? 0)], ["reasoning", (figures) => figures.reasoning_tokens ?? 0],
];

const ENDS = { client_gone: "the client left", upstream_lost: "the upstream was lost", timeout: "timed out", drain: "cut at a stop", refused: "refused" };

const turns = new WeakMap();

/** Fill a place when an answer comes; until then what it had stays, dimmed. A fault says what to do. */
async function into(place, answer, render, again) {
  place.setAttribute("aria-busy", "true");
  const turn = (turns.get(place) ?? 0) + 1; // an answer that comes after that to a later question is not shown
  turns.set(place, turn);
  try {
    const found = await answer;
    if (turns.get(place) !== turn) return;
    keepFocus(place, () => fill(place, render(found)));
  } catch (error) {
    if (turns.get(place) !== turn || error.name === "AbortError" || error.status === 401) return;
    const said = [...document.querySelectorAll(".fault strong")].some((other) => !place.contains(other) && other.textContent === error.message);
    fill(place, said ? h("p", { class: "muted" }, "Not shown, as is said above.") : fault(error, again));
  }
  place.removeAttribute("aria-busy");
}

/** What went wrong, and what helps. */
export function fault(error, again) {
  const actions = [button("Try again", again)];
  if (error.code === "query_too_long") actions.unshift(h("a", { class: "button", href: link(route().view, { since: "24h", until: null }, "all") }, "Show 24 hours"));
  const advice = error.status === 0 ? "Is the service running, and the network up? What was shown is not lost." : error.retryAfter ? `Try again in ${error.retryAfter} s.` : "";
  return notice(error.message, advice, actions, "fault");
}

/**
 * The view. A key's holder sees the same of one key: there, `context.mine` has `report(pairs, options)` and `standings`
 * (a node), and there are no filters, no other owners and keys, and nothing of the service.
 */
export function overview(root, context) {
  const { mine } = context;
  const ask = mine?.report ?? ((pairs, options) => get("report", pairs, options));
  const leadersBy = mine ? ["model"] : ["owner", "model", "key"];
  let stop = new AbortController();
  let undraw = () => {};
  let known = new Map(), of = null, asOf = 0; // answers for one period and its filters, so that another figure or split is there at once
  const places = Object.fromEntries(["now", "kpis", "chart", "owner", "model", "key", "failures", "budgets", "upstreams"].map((name) => [name, h("div", { class: `place ${name}` })]));
  const bars = h("div", { class: "toolbar" });
  const section = (title, name, beside) => h("section", { class: `panel ${name}`, "aria-labelledby": `h-${name}` }, h("header", null, h("h2", { id: `h-${name}` }, title), beside), places[name]);
  const headings = {};
  for (const [name, title] of [["owner", "Owners"], ["model", "Models"], ["key", "Keys"]]) headings[name] = [section(title, name), title];
  fill(root, mine ? [bars, places.kpis, places.chart, h("div", { class: "columns" }, headings.model[0], h("section", { class: "panel" }, h("header", null, h("h2", null, "Limits")), mine.standings))]
    : [h("h1", { class: "unseen" }, "Overview"), bars, places.now, places.kpis, places.chart,
      h("div", { class: "columns" }, headings.owner[0], headings.model[0], headings.key[0], section("Failures", "failures"),
        section("Budgets", "budgets", h("span", { class: "muted" }, "fullest first")),
        section("Upstreams", "upstreams", h("span", { class: "muted" }, "now")))]);

  function show(fresh = false) {
    const { params } = route();
    const same = JSON.stringify(["since", "until", "where"].map((name) => params.getAll(name)));
    if (fresh || same !== of || context.now() - asOf >= EVERY) {
      stop.abort();
      stop = new AbortController();
      [known, of, asOf] = [new Map(), same, context.now()];
    }
    const now = asOf;
    const found = period(params, now);
    const metric = METRICS[params.get("metric")] ? params.get("metric") : "spend";
    const options = { signal: stop.signal };
    const where = asked(params);
    const span = (of) => [["since", iso(of.since)], ["until", iso(of.until)]];
    const report = (of, by, extra = [], conditions = where) => {
      const pairs = [["by", by], ...span(of), ...conditions, ...extra];
      const name = JSON.stringify(pairs);
      if (!known.has(name)) known.set(name, ask(pairs, options));
      known.get(name).catch(() => {}); // whoever waits for it says so; one that nobody waits for any more need not
      return known.get(name);
    };
    const tops = (by, groups) => [...where.filter(([, one]) => !one.startsWith(`${by}=`)), ...groups.map((group) => ["where", `${by}=${group[by] ?? ""}`])];
    const again = () => show(true);

    fill(bars, periods(found), mine ? null : h("div", { class: "filters" }, filters(false, found.since)),
      h("div", { class: "end" }, h("span", { class: "muted", title: inWords(found) }, `as of ${time(now, "clock")}`), button("Refresh", again, { title: "r" }), mine ? null : context.linker(found)));

    // What is asked is the same for all panels: the totals, and those of the period before.
    const total = report(found, ""), prior = report(found.prior, "");
    into(places.kpis, Promise.all([total, prior]), ([now_, before]) => [kpis(now_.total, before.total, found, metric), doubts(now_)], again);

    draw(found, metric, params, report, tops, total, prior, again);
    for (const by of leadersBy) {
      const { sort, label } = METRICS[metric];
      headings[by][0].querySelector("h2").textContent = `${headings[by][1]} by ${label.toLowerCase().replace(", p95", "").replace("flowstack", "Flowstack")}`;
      const lines = report(found, by, [["sort", sort], ["limit", 8]]);
      const both = lines.then(async (answer) => [answer, answer.groups.length ? await report(found.prior, by, [], tops(by, answer.groups)) : { groups: [] }]);
      into(places[by], Promise.all([both, total]), ([[answer, before], all]) => leaders(by, metric, answer, before, all.total), again);
    }
    if (mine) return;
    const fields = "status,error,end,upstream";
    into(places.failures, Promise.all([report(found, fields, [["sort", "errors"], ["limit", 10]]), report(found.prior, fields, [["sort", "errors"], ["limit", 200]]), total]),
      ([answer, before, all]) => failures(answer, before, all.total), again);
    into(places.budgets, get("budgets", null, options), (answer) => budgets(answer.budgets, now), again);
  }

  function draw(found, metric, params, report, tops, total, prior, again) {
    const spec = METRICS[metric];
    const lines = spec.lines;
    const by = params.get("by") ?? (lines ? "" : metric === "tokens" ? "kind" : "model");
    const at = steps(found);
    const start = (line) => Date.parse(found.step === "day" ? `${line.day}T00:00Z` : line.hour);
    const series = async () => {
      const overall = report(found, found.step), earlier = report(found.prior, found.step);
      let leading = null, groups = null, of = null;
      if (by && by !== "kind") {
        [leading] = [await report(found, by, [["sort", spec.sort], ["limit", TOP]])];
        if (leading.groups.length) [groups, of] = await Promise.all([report(found, `${found.step},${by}`, [], tops(by, leading.groups)), report(found.prior, by, [], tops(by, leading.groups))]);
      }
      return [await overall, await earlier, leading, groups, of, (await total).total, (await prior).total];
    };
    into(places.chart, series(), ([overall, earlier, leading, groups, of, sum, sumBefore]) => {
      const byTime = new Map(overall.groups.map((line) => [start(line), line]));
      const over = (value) => at.map((one) => (byTime.has(one) ? value(byTime.get(one)) : lines ? null : 0));
      let shown;
      if (lines && !by) shown = [50, 95, 99].map((nth, i) => ({ name: `p${nth}`, values: over((line) => line[`${lines}_p${nth}_ms`]), all: sum[`${lines}_p${nth}_ms`], before: sumBefore[`${lines}_p${nth}_ms`], colour: ["s5", "s1", "s6"][i] }));
      else if (by === "kind") shown = KINDS.map(([name, value], nth) => ({ name, values: over(value), all: value(sum), before: value(sumBefore), colour: ["s1", "s5", "s2", "s4"][nth] }));
      else {
        const earlierOf = new Map((of?.groups ?? []).map((line) => [line[by], line]));
        const cells = new Map((groups?.groups ?? []).map((line) => [`${start(line)} ${line[by]}`, spec.value(line)]));
        shown = leading.groups.map((line, nth) => ({
          name: line[by], values: at.map((one) => cells.get(`${one} ${line[by]}`) ?? (lines ? null : 0)), all: spec.value(line),
          before: earlierOf.has(line[by]) ? spec.value(earlierOf.get(line[by])) : lines ? null : 0, colour: `s${nth + 1}`, href: mine ? null : narrowed("overview", by, line[by]),
        }));
        if (!lines && leading.left_out) {
          const known = (value, name) => shown.reduce((rest, one) => rest - (one[name] ?? 0), value ?? 0);
          shown.push({ name: `${count(leading.left_out)} more`, values: over(spec.value).map((value, nth) => Math.max(0, shown.reduce((rest, one) => rest - one.values[nth], value ?? 0))),
            all: Math.max(0, known(spec.value(sum), "all")), before: Math.max(0, known(spec.value(sumBefore), "before")), colour: "s0" });
        }
      }
      const earlierBy = new Map(earlier.groups.map((line) => [start(line), spec.value(line)]));
      const shift = Math.round((found.since - found.prior.since) / found.size) * found.size;
      const before = lines && by ? null : at.map((one) => earlierBy.get(one - shift) ?? (lines ? null : 0));
      return stage(found, metric, by, { at, size: found.size, series: shown, before, total: spec.value(sum), totalBefore: spec.value(sumBefore) });
    }, again).then(() => places.chart.dispatchEvent(new Event("placed")));
  }

  /** The chart, its controls, and its key with the figures of the whole period or of the step that is pointed at. */
  function stage(found, metric, by, data) {
    const spec = METRICS[metric];
    const caption = `${spec.label} by ${found.step}, ${inWords(found)}`;
    const place = h("div", { class: "canvas" });
    const legend = h("div", { class: "legend" });
    const stacked = !spec.lines;
    const lines = (nth) => [
      ...data.series.map((one) => ({ ...one, now: nth == null ? one.all : one.values[nth] })),
      ...(stacked ? [{ name: "all", colour: null, now: nth == null ? data.total : data.series.reduce((all, one) => all + (one.values[nth] ?? 0), 0), before: data.totalBefore, class: "total" }] : []),
    ];
    const pick = (nth) => {
      const shown = lines(nth), all = stacked ? shown.at(-1).now : null;
      fill(legend, table("The figures of the chart", [
        { head: nth == null ? "Whole period" : stepName(data.at[nth], data.size), class: "name", cell: (one) => [h("i", { class: `swatch ${one.colour ?? "no"}`, "aria-hidden": "true" }), one.href ? h("a", { href: one.href }, text(one.name)) : text(one.name)] },
        { head: spec.label.split(",")[0].replace("Flowstack’s own", "Own time"), number: true, cell: (one) => spec.show(one.now) },
        ...(stacked ? [{ head: "Share", number: true, class: "muted", cell: (one) => (all ? percent(one.now / all) : DASH) }] : []),
        { head: "Before", number: true, class: "muted", cell: (one) => (nth == null ? spec.show(one.before) : one.class && data.before ? spec.show(data.before[nth]) : "") },
        { head: h("span", { class: "unseen" }, "Change"), number: true, class: "muted", cell: (one) => (nth == null ? more(one.now, one.before) : one.class && data.before ? more(one.now, data.before[nth]) : "") },
      ], shown));
    };
    pick(null);
    const drawn = { ...data, kind: stacked ? "bars" : "lines", label: `${caption}: ${data.series.map((one) => `${one.name ?? "(none)"} ${spec.show(one.all)}`).join(", ")}.`, format: spec.show, axis: spec.axis, pick,
      zoom: (from, until) => change({ since: iso(from), until: iso(Math.min(until, context.now())), step: null }) };
    const { params } = route();
    const asks = params.get("table") === "1";
    const other = by.startsWith("attribute:");
    const name = h("input", { "aria-label": "Name of the attribute", placeholder: "attribute’s name", value: other ? by.slice(10) : "", hidden: !other, onchange: (event) => event.target.value.trim() && change({ by: `attribute:${event.target.value.trim().toLowerCase()}` }) });
    const menu = select("Split by", [...(spec.lines ? [["", "percentile"]] : []), ...(metric === "tokens" ? [["kind", "kind of token"]] : []), ...(mine ? [["model", "model"]] : [...FIELDS.map((one) => [one, one]), ["attribute", "attribute …"]])],
      other ? "attribute" : by, (to) => { if (to === "attribute") { name.hidden = false; name.focus(); } else change({ by: to || null }); });
    const empty = !data.series.length || data.series.every((one) => one.values.every((value) => !value));
    places.chart.addEventListener("placed", () => {
      undraw();
      undraw = () => {};
      if (place.isConnected && !empty) undraw = chart(place, drawn);
    }, { once: true });
    return h("section", { class: "panel stage", "aria-labelledby": "h-chart" },
      h("header", null, h("h2", { id: "h-chart" }, spec.label.replace(", p95", spec.lines && by ? ", p95" : "")),
        h("label", null, "by ", menu), name,
        h("label", null, "each ", select("Step", [["hour", "hour"], ["day", "day (UTC)"]], found.step, (to) => change({ step: to }))),
        data.before && !empty ? h("span", { class: "muted", title: inWords(found.prior) }, h("i", { class: "dash", "aria-hidden": "true" }), `period before${spec.lines ? ", p95" : ""}`) : null,
        h("span", { class: "grow" }),
        button(asks ? "As a chart" : "As a table", () => change({ table: asks ? null : "1" }))),
      empty ? notice("Nothing in this period", params.has("where") ? "No request fits the period and the filters. Take a longer period, or take a filter out." : "No request with a valid key came in this period. Take a longer one.",
        [h("a", { class: "button", href: link("overview", { since: "30d", until: null }) }, "Show 30 days")])
        : h("div", { class: "split" }, asks ? asTable(caption, drawn) : place, h("div", { class: "scroll" }, legend)));
  }

  function kpis(total, before, found, chosen) {
    const minutes = (found.until - found.since) / 60_000;
    const sockets = chosen === "connections" || total.connections || before.connections;
    const shown = Object.entries(METRICS).filter(([name]) => (name === "overhead" ? !mine : name !== "connections" || sockets));
    return h("div", { class: sockets ? "figures more" : "figures", role: "group", "aria-label": "Figures of the period; one is drawn below" }, shown.map(([name, spec]) => {
      const main = spec.main ?? spec.value, form = spec.mainShow ?? spec.show;
      return button([
        h("span", { class: "label" }, spec.label),
        h("span", { class: "value" }, least(form(main(total)), spec.missing?.(total))),
        h("span", { class: "before", title: inWords(found.prior) }, `before ${form(main(before))}`, h("b", null, spec.main ? "" : more(main(total), main(before)))),
        spec.detail(total, minutes).map((words) => h("span", { class: "detail" }, words)),
      ], () => change({ metric: name === "spend" ? null : name, by: null }), { "aria-pressed": String(name === chosen) });
    }));
  }

  /** What the figures lack. */
  function doubts(answer) {
    const words = [];
    const names = (gaps) => gaps.slice(0, 3).map((gap) => h("bdi", { class: "cut" }, gap.model ?? gap.endpoint ?? "(no model named)")).flatMap((one, nth) => (nth ? [", ", one] : [one]));
    const few = (gaps) => [names(gaps), gaps.length > 3 ? ` and ${gaps.length - 3} more` : ""];
    if (answer.no_price.length) words.push(["No price: ", few(answer.no_price), ". Spend is at least what is shown; give prices in the configuration."]);
    if (answer.no_usage.length) words.push(["No usage: ", few(answer.no_usage), ". Tokens and spend are at least what is shown."]);
    if (answer.journal_bytes_not_indexed) words.push([`${bytes(answer.journal_bytes_not_indexed)} of rows are not in these figures yet.`]);
    if (answer.damaged_lines) words.push([`${count(answer.damaged_lines)} lines of the journal are damaged, and count nowhere.`]);
    return words.map((one) => h("p", { class: "doubt" }, one));
  }

  function leaders(by, metric, answer, before, total) {
    if (!answer.groups.length) return h("p", { class: "muted" }, "Nothing in this period.");
    const spec = METRICS[metric];
    const earlier = new Map(before.groups.map((line) => [line[by], line]));
    const was = (line) => (earlier.has(line[by]) ? spec.value(earlier.get(line[by])) : spec.lines ? null : 0);
    const most = Math.max(...answer.groups.map((line) => spec.value(line) ?? 0));
    const rest = spec.lines ? 0 : answer.groups.reduce((left, line) => left - (spec.value(line) ?? 0), spec.value(total) ?? 0);
    const columns = [
      { head: by[0].toUpperCase() + by.slice(1), class: "name", cell: (line) => (mine ? text(line[by]) : h("a", { href: narrowed("overview", by, line[by]), title: "Show this alone" }, text(line[by]))) },
      { head: h("span", { class: "unseen" }, "Share"), class: "bars", cell: (line) => bar((spec.value(line) ?? 0) / (most || 1)) },
      { head: spec.lines ? "p95" : spec.label, number: true, cell: (line) => least(spec.show(spec.value(line)), spec.missing?.(line)) },
      { head: "Before", number: true, class: "muted", cell: (line) => spec.show(was(line)) },
      { head: h("span", { class: "unseen" }, "Change"), number: true, class: "muted", cell: (line) => more(spec.value(line), was(line)) },
      ...(spec.lines || metric === "errors" || metric === "tokens" ? [{ head: "Spend", number: true, class: "wide", cell: (line) => usd(line.cost_usd) }] : []),
      ...(metric === "requests" ? [{ head: "Spend", number: true, class: "wide", cell: (line) => usd(line.cost_usd) }] : [{ head: "Requests", number: true, cell: (line) => count(line.requests) }]),
      { head: "Errors", number: true, class: "wide", cell: (line) => (mine ? percent(share(line)) : h("a", { href: narrowed("requests", by, line[by]), title: "Its requests", class: "quiet" }, percent(share(line)))) },
    ];
    return [h("div", { class: "scroll" }, table(`${by}s, the first ${answer.groups.length}`, columns, answer.groups)),
      answer.left_out ? h("p", { class: "muted below" }, `${count(answer.left_out)} more${rest > 1e-9 ? `, ${spec.show(rest)} together` : ""}`) : null];
  }

  function failures(answer, before, total) {
    const lines = answer.groups.filter((line) => line.errors);
    const why = (line) => line.error ?? ENDS[line.end] ?? `the provider answered ${line.status}`;
    if (!lines.length) return h("p", { class: "muted" }, total.requests ? `None of ${count(total.requests)} requests failed.` : "Nothing in this period.");
    const name = (line) => ["status", "error", "end", "upstream"].map((field) => line[field]).join(" ");
    const earlier = new Map(before.groups.map((line) => [name(line), line.errors]));
    const most = lines[0].errors;
    const only = (line) => link("requests", { where: [...route().params.getAll("where").filter((one) => !/^(status|error|end|upstream)=/.test(one)), ...["status", "error", "end", "upstream"].map((field) => `${field}=${line[field] ?? ""}`)] });
    return h("div", { class: "scroll" }, table("Failures by reason", [
      { head: "Why", class: "name", cell: (line) => h("a", { href: only(line), title: "These requests" }, text(why(line))) },
      { head: h("span", { class: "unseen" }, "Share"), class: "bars", cell: (line) => bar(line.errors / most, { state: "bad" }) },
      { head: "Status", number: true, cell: (line) => line.status ?? DASH },
      { head: "Upstream", class: "wide", cell: (line) => text(line.upstream, DASH) },
      { head: "Failed", number: true, cell: (line) => count(line.errors) },
      { head: "Before", number: true, class: "muted", cell: (line) => count(earlier.get(name(line)) ?? 0) },
      { head: h("span", { class: "unseen" }, "Change"), number: true, class: "muted", cell: (line) => more(line.errors, earlier.get(name(line)) ?? 0) },
    ], lines));
  }

  function budgets(all, now) {
    if (!all.length) return notice("No budgets", "Give a key or a group a budget, such as 50usd/month, and what is left of it stands here.", [h("a", { class: "button", href: link("keys") }, "Keys")]);
    return [h("div", { class: "scroll" }, table("Budgets, the fullest first", [
      { head: "Of", class: "name", cell: (one) => h("a", { href: link(one.of === "key" ? "keys" : "groups", { open: one.id }) }, text(one.of === "group" ? `@${one.id}` : one.owner ?? one.id)) },
      { head: h("span", { class: "unseen" }, "Used"), class: "bars", cell: (one) => bar(one.spent_usd / one.amount_usd, { mark: one.projected_usd == null ? null : one.projected_usd / one.amount_usd, state: state(one) }) },
      { head: "Used", number: true, cell: (one) => percent(one.spent_usd / one.amount_usd) },
      { head: "Spent", number: true, cell: (one) => usd(one.spent_usd) },
      { head: "of", cell: (one) => `${usd(one.amount_usd)}${one.period === "total" ? "" : ` a ${one.period}`}`, class: "muted nowrap wide" },
      { head: "Left", number: true, class: "wide", cell: (one) => usd(one.left_usd) },
      { head: "By its end", title: "What will be spent by the end of the period at the pace so far", number: true, class: "wide", cell: (one) => (one.projected_usd == null ? DASH : h("span", { class: one.projected_usd > one.amount_usd ? "warn" : null }, usd(one.projected_usd))) },
      { head: "Renewed", class: "muted wide nowrap", cell: (one) => (one.resets_at ? h("span", { title: exact(one.resets_at) }, ahead(one.resets_at, now)) : "never") },
    ], all.slice(0, 10))), all.length > 10 ? h("p", { class: "muted below" }, h("a", { href: link("keys") }, `${count(all.length - 10)} more under Keys`)) : null];
  }

  const state = (one) => (one.spent_usd >= one.amount_usd ? "bad" : one.projected_usd > one.amount_usd || one.spent_usd > 0.8 * one.amount_usd ? "warn" : null);

  async function live() {
    if (document.hidden) return;
    try {
      const found = await get("live", null, { quiet: true });
      fill(places.now, strip(found));
      fill(places.upstreams, upstreams(found.upstreams));
    } catch (error) {
      if (error.status !== 401) fill(places.now, h("p", null, h("span", { class: "bad" }, "Now: ", error.message)));
    }
  }

  /** Which of its targets are down. */
  const down = (one) => (one.down.includes(one.name) ? "down" : `down: ${one.down.map((label) => label.slice(one.name.length + 1)).join(", ")}`);

  /** How each upstream does: what it failed, and what another attempt served all the same. */
  function upstreams(all) {
    const many = (value) => (value == null ? DASH : count(value));
    return h("div", { class: "scroll" }, table("Upstreams in the last minute", [
      { head: "Upstream", class: "name", cell: (one) => h("a", { href: narrowed("requests", "upstream", one.name), title: "Its requests" }, text(one.name)) },
      { head: "State", cell: (one) => h("span", { class: one.state === "failing" ? "bad" : one.state === "unknown" ? "muted" : null }, one.down.length ? down(one) : one.state === "unknown" ? "idle" : one.state) },
      { head: "Requests", number: true, cell: (one) => many(one.requests_1m) },
      { head: "Failed", number: true, cell: (one) => many(one.errors_1m) },
      { head: "Rescued", number: true, title: "Answered well by another attempt, after one here had failed", cell: (one) => many(one.rescued_1m) },
      { head: "Connections", number: true, class: "wide", cell: (one) => many(one.connections.open) },
      { head: "Waiting", number: true, class: "wide", title: "Requests that wait for a connection", cell: (one) => many(one.connections.waiting) },
    ], all));
  }

  function strip({ in_flight: inFlight, streams_open: streams, websockets_open: sockets, upstreams, workers, reload, ledger, uptime_seconds: up }) {
    const item = (label, value, kind, title) => h("span", { class: kind, title }, h("span", { class: "muted" }, label), " ", value);
    const many = (one) => (one.requests_1m ? `${count(one.requests_1m)} in ${spell(one.seconds ?? 60)}${one.errors_1m ? `, ${count(one.errors_1m)} failed` : ""}` : "no requests") + (one.rescued_1m ? `, ${count(one.rescued_1m)} rescued` : "") + (one.down.length ? `, ${down(one)}` : "");
    const fault = [reload.fault ?? []].flat();
    return h("p", null,
      item("in flight", count(inFlight)), item("streams", count(streams)), item("WebSockets", count(sockets)),
      upstreams.map((one) => item(h("bdi", null, one.name), many(one), one.state === "failing" ? "bad" : null)),
      item("workers", ["ready", "starting", "gone"].filter((name) => workers[name]).map((name) => `${count(workers[name])} ${name}`).join(", "), workers.gone ? "bad" : null),
      item("keys", fault.length ? "the last reload failed" : `${count(reload.keys)}, loaded ${reload.at ? ago(reload.at, context.now()) : DASH}`, fault.length ? "bad" : null, fault.join("\n") || exact(reload.at)),
      item("ledger", ledger.lost_rows ? `${count(ledger.lost_rows)} rows lost` : ledger.queued_bytes ? `${bytes(ledger.queued_bytes)} wait to be written` : ledger.bytes_behind ? `index ${bytes(ledger.bytes_behind)} behind` : "up to date", ledger.lost_rows || ledger.queued_bytes ? "bad" : null),
      item("up", spell(up)));
  }

  const timers = []; // each question of a key's holder has a row of its own, so that their page asks when it is told to
  if (!mine) {
    live();
    timers.push(setInterval(live, LIVE_EVERY));
    timers.push(setInterval(() => { if (!document.hidden && !route().params.has("until") && !root.contains(document.activeElement)) show(true); }, EVERY));
  }
  return {
    show: () => show(),
    redraw: () => show(),
    refresh: () => show(true),
    close() { stop.abort(); undraw(); timers.forEach(clearInterval); },
  };
}
