/** Keys and groups: what each may do and has used, and, where that is switched on, their changes. */

import { get, send } from "./api.js";
import { bar, button, choice, copier, dialog, fill, h, notice, say, select, table, text } from "./dom.js";
import { ahead, count, DASH, percent, short, usd } from "./format.js";
import { fault } from "./overview.js";
import { LIMITS, standing, state } from "./standing.js";
import { change, link, route } from "./state.js";

/** Attributes as they stand on a key's line: name, label, example, what is meant. */
const ATTRIBUTES = [
  ["owner", "Owner", "alice@example.com", "Who uses it. It stands in each row."],
  ["group", "Group", "search", "Whose limits it shares with other keys."],
  ["note", "Note", "for the nightly batch", "For whoever keeps the keys."],
  ["expires", "Expires", "2027-06-30", "The last valid day, in UTC."],
  ["budget", "Budget", "50usd/month", "The most money, in USD by day, by month or in total."],
  ["rpm", "Requests a minute", "600", ""],
  ["tpm", "Tokens a minute", "200000", ""],
  ["max_parallel", "Requests at once", "20", ""],
  ["models", "Models", "gpt-4o*,o3", "With commas; * stands for any characters. Empty: all."],
  ["endpoints", "Endpoints", "POST:/v1/chat/completions", "Paths, with commas, each with a method before it or not. Empty: all."],
  ["upstreams", "Upstreams", "openai", "With commas. Empty: all."],
  ["allow_ip", "Addresses", "10.0.0.0/8", "Addresses and networks, with commas. Empty: from anywhere."],
  ["inject_usage", "Ask for usage", "on", "Whether streams are asked to report their usage: on or off."],
];
const OF_GROUP = ["note", "budget", "rpm", "tpm", "max_parallel"];
const FIRST = 200;

const words = (value) => (value == null ? "" : Array.isArray(value) ? value.join(",") : value === true ? "on" : value === false ? "off" : String(value));
const own = (of) => of.limits?.find((one) => one.limit === "budget" && (one.group ?? null) === (of.name ?? null) && one.upstream == null) ?? null;
const spent = (budget) => (budget ? budget.spent_usd / budget.amount_usd : null);

/** The view of `keys`, or of `groups`. */
export const keys = (kind) => (root, context) => {
  const isKeys = kind === "keys";
  const id = (of) => (isKeys ? of.id : of.name);
  const name = (of) => (isKeys ? of.owner ?? of.id : `@${of.name}`);
  const one = isKeys ? "key" : "group";
  let all = [], leftOut = 0, groups = [], sort = null, first = FIRST, stop = new AbortController(), timer = null;
  const bars = h("div", { class: "toolbar" }), told = h("div"), list = h("div", { class: "place list" }), side = h("aside", { class: "drawer", "aria-label": `The ${one} that is open`, tabindex: "-1", hidden: true });
  fill(root, h("h1", { class: "unseen" }, isKeys ? "Keys" : "Groups"), bars, h("div", { class: "beside" }, h("div", null, told, list), side));
  const manages = () => context.session.manage_keys;

  function toolbar() {
    const find = h("input", { type: "search", id: "find", class: "find", value: route().params.get("match") ?? "", placeholder: isKeys ? "owner, id, group or note" : "name or note", "aria-label": `Find ${kind}`, spellcheck: "false",
      oninput: () => { clearTimeout(timer); timer = setTimeout(() => change({ match: find.value.trim() || null }, true), 200); } });
    fill(bars, find, h("span", { class: "muted grow" }, all.length ? `${count(all.length + leftOut)} ${kind}` : ""),
      h("div", { class: "end" }, button("Refresh", load, { title: "r" }), manages() ? button(isKeys ? "New key" : "New group", make, { class: "main" }) : null));
    if (!manages()) bars.lastChild.before(h("span", { class: "muted" }, context.session.role === "manager" ? ["Read-only: ", h("code", null, "[admin] manage_keys"), " is off"] : "Read-only"));
  }

  async function load() {
    stop.abort();
    stop = new AbortController();
    list.setAttribute("aria-busy", "true");
    const match = route().params.get("match");
    try {
      const answer = await get(kind, isKeys ? { limit: first, ...(match ? { search: match } : {}) } : {}, { signal: stop.signal });
      all = answer[kind];
      leftOut = answer.left_out ?? 0;
      if (!bars.contains(document.activeElement)) toolbar();
      draw();
      drawer();
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      fill(list, fault(error, load));
    }
    list.removeAttribute("aria-busy");
  }

  const COLUMNS = isKeys ? [
    { head: "Owner", class: "name", by: (of) => of.owner, cell: (of) => h("a", { href: link(kind, { open: id(of) }, "all") }, text(of.owner, "(no owner)")) },
    { head: "Key", class: "mono mid", cell: (of) => of.id },
    { head: "State", cell: (of) => h("span", { class: of.state === "ok" ? "muted" : "bad" }, of.state) },
    { head: "Group", by: (of) => of.group, class: "clip mid", cell: (of) => (of.group ? h("a", { href: link("groups", { open: of.group }, []) }, text(of.group)) : h("span", { class: "muted" }, DASH)) },
    { head: "Limits", class: "wide clip", cell: (of) => h("span", { class: "cut" }, limits(of)) },
    ...used(),
    { head: "Last used", title: "In the last 30 days, by days of UTC", number: true, by: (of) => of.last_used ?? "", class: "wide nowrap", cell: (of) => lastUsed(of) },
    { head: "Expires", number: true, by: (of) => of.expires ?? "9", class: "wide", cell: (of) => (of.expires ? h("span", { class: Date.parse(of.expires) - context.now() < 14 * 86_400_000 ? "warn" : null, title: ahead(of.expires, context.now()) }, of.expires) : h("span", { class: "muted" }, "never")) },
  ] : [
    { head: "Group", class: "name", by: (of) => of.name, cell: (of) => h("a", { href: link(kind, { open: id(of) }, "all") }, text(`@${of.name}`)) },
    { head: "Keys", number: true, by: (of) => of.keys, cell: (of) => h("a", { href: link("keys", { match: of.name }, []) }, count(of.keys)) },
    { head: "Limits", class: "clip mid", cell: (of) => h("span", { class: "cut" }, limits(of)) },
    ...used(),
    { head: "Note", class: "wide clip", cell: (of) => text(of.note, DASH) },
  ];

  function lastUsed({ last_used: day }) {
    if (!day) return h("span", { class: "muted", title: "Not in the last 30 days" }, DASH);
    const days = Math.floor(context.now() / 86_400_000) - Math.floor(Date.parse(day) / 86_400_000);
    return h("span", { title: `${day} (UTC)` }, ["today", "yesterday"][days] ?? `${days} d ago`);
  }

  function used() {
    return [
      { head: "Budget used", by: (of) => spent(own(of)) ?? -1, class: "bars mid", cell: (of) => (own(of) ? bar(spent(own(of)), { state: state(spent(own(of))) }) : h("span", { class: "muted" }, "none")) },
      { head: h("span", { class: "unseen" }, "Part"), number: true, cell: (of) => (own(of) ? percent(spent(own(of))) : "") },
      { head: "Spent", number: true, cell: (of) => (own(of) ? usd(own(of).spent_usd) : "") },
      { head: "of", class: "muted wide nowrap", cell: (of) => (own(of) ? budgetWords(own(of)) : "") },
      { head: "Left", number: true, class: "wide", cell: (of) => (own(of) ? usd(own(of).left_usd) : "") },
    ];
  }

  const budgetWords = (budget) => `${usd(budget.amount_usd)}${budget.period === "total" ? " in all" : ` a ${budget.period}`}`;
  const limits = (of) => Object.entries(LIMITS).filter(([limit]) => of[limit]).map(([limit, unit]) => `${short(of[limit])} ${unit.replace("requests a minute", "req/min").replace("tokens a minute", "tok/min").replace("requests at once", "at once")}`).join(", ") || DASH;

  function draw() {
    const match = (route().params.get("match") ?? "").toLowerCase();
    let rows = all.filter((of) => !match || [id(of), of.owner, of.group, of.note].some((value) => value?.toLowerCase().includes(match)));
    if (sort) rows = [...rows].sort((a, b) => { const [x, y] = [sort.by(a), sort.by(b)]; return (x == null) - (y == null) || (x < y ? -1 : x > y ? 1 : 0) * sort.way; });
    if (!rows.length) return void fill(list, match ? notice(`No ${one} fits “${match}”`, "", [button("Show all", () => { bars.querySelector("#find").value = ""; change({ match: null }); })])
      : notice(`No ${kind} yet`, isKeys ? "Requests need a key. Make one here where keys are managed, or by: flowstack keys add" : "A group is a set of limits that several keys share. Make one here where keys are managed, or by: flowstack groups add", manages() ? [button(isKeys ? "New key" : "New group", make, { class: "main" })] : []));
    const columns = COLUMNS.map((column) => (column.by ? { ...column, sort: sort?.head === column.head ? (sort.way > 0 ? "ascending" : "descending") : null,
      head: button([column.head, h("span", { "aria-hidden": "true" }, sort?.head === column.head ? (sort.way > 0 ? " ↑" : " ↓") : "")], () => { sort = sort?.head === column.head ? (sort.way > 0 ? { ...sort, way: -1 } : null) : { head: column.head, by: column.by, way: 1 }; draw(); }, { class: "sorter" }) } : column));
    fill(list, h("div", { class: "scroll" }, table(isKeys ? "Keys" : "Groups", columns, rows.map((of) => Object.assign(of, { class: of.state && of.state !== "ok" ? "off" : null })), { key: id, open: (of) => change({ open: id(of) }), chosen: route().params.get("open") })),
      leftOut ? h("p", { class: "below muted" }, `${count(leftOut)} more. Find them by owner, id, group or note, or `, button("show more", () => { first *= 5; load(); })) : null);
  }

  async function drawer(result = null) {
    const open = route().params.get("open");
    for (const line of list.querySelectorAll("tr[data-key]")) line.toggleAttribute("aria-current", line.dataset.key === open);
    for (const line of list.querySelectorAll("tr[aria-current]")) line.setAttribute("aria-current", "true");
    side.hidden = !open;
    if (!open) return;
    let of = all.find((other) => id(other) === open);
    if (!of && isKeys && leftOut) of = (await get("keys", { search: open, limit: 1 }).catch(() => ({ keys: [] }))).keys[0];
    const close = button("×", () => change({ open: null }), { class: "close", "aria-label": `Close the ${one}` });
    if (!of) return void fill(side, h("header", null, h("h2", null, text(open)), close), notice(`There is no ${one} ${open}`, "It may have been removed."));
    const report = isKeys ? `key=${of.id}` : `group=${of.name}`;
    const said = side.querySelector(".result");
    fill(side,
      h("header", null, h("h2", null, text(name(of))), close),
      h("p", { class: "sum" }, isKeys ? [h("code", null, of.id), " ", copier(of.id, "Copy id"), " ", of.state === "ok" ? null : h("strong", { class: "bad" }, of.state)] : `${count(of.keys)} keys`),
      result ?? (side.dataset.open === open ? said : null),
      h("p", { class: "actions" },
        h("a", { class: "button", href: link("overview", { where: report }, ["since", "until"]) }, "Usage"), h("a", { class: "button", href: link("requests", { where: report }, ["since", "until"]) }, "Requests"),
        manages() ? [button("Change", () => edit(of)), isKeys ? button("Rotate", () => rotate(of)) : null, isKeys ? button(of.disabled ? "Enable" : "Disable", () => toggle(of)) : null, button("Remove", () => remove(of), { class: "danger" })] : null),
      h("section", null, h("h3", null, "Used of what stands for it"), of.limits == null ? h("p", { class: "muted" }, "Not known: the counters cannot be read.") : of.limits.length ? h("div", { class: "standings" }, of.limits.map((limit) => standing(limit, context.now()))) : h("p", { class: "muted" }, "No limit stands for it.")),
      h("section", null, h("h3", null, "Attributes"), h("dl", { class: "fields" },
        ATTRIBUTES.filter(([attribute]) => isKeys || OF_GROUP.includes(attribute)).map(([attribute, label]) => h("div", null, h("dt", null, label), h("dd", null, value(of, attribute)))),
        isKeys ? h("div", null, h("dt", null, "Last used"), h("dd", null, lastUsed(of))) : null)));
    side.dataset.open = open;
  }

  function value(of, attribute) {
    const shown = words(of[attribute]);
    if (!shown) return h("span", { class: "none" }, ["models", "endpoints", "upstreams", "allow_ip"].includes(attribute) ? "all" : attribute === "expires" ? "never" : ["rpm", "tpm", "max_parallel", "budget"].includes(attribute) ? "no limit of its own" : "none");
    return h("bdi", { class: "whole" }, Array.isArray(of[attribute]) ? of[attribute].join(", ") : Number.isFinite(of[attribute]) ? count(of[attribute]) : shown);
  }

  // Changes

  /** A form of attributes; `done(changed)` sends what differs from `of`. */
  function form(title, of, label, done) {
    const shown = ATTRIBUTES.filter(([attribute]) => isKeys || OF_GROUP.includes(attribute));
    const inputs = {};
    const said = h("p", { class: "bad", role: "alert", id: "form-fault" });
    const submit = h("button", { type: "submit", class: "main" }, label);
    const field = ([attribute, heading, example, meaning]) => {
      const value_ = words(of?.[attribute]);
      const input = attribute === "inject_usage" ? select(heading, [["", "as configured"], ["on", "on"], ["off", "off"]], value_, () => {}, { id: `f-${attribute}` })
        : attribute === "group" && groups.length ? select(heading, [["", "none"], ...groups.map((group) => [group.name, group.name])], value_, () => {}, { id: `f-${attribute}` })
          : h("input", { id: `f-${attribute}`, value: value_, placeholder: example, autocomplete: "off", spellcheck: "false", inputmode: LIMITS[attribute] ? "numeric" : null, "aria-describedby": meaning ? `m-${attribute}` : null });
      inputs[attribute] = input;
      return h("div", { class: "field" }, h("label", { for: `f-${attribute}` }, heading), input, meaning ? h("p", { class: "muted", id: `m-${attribute}` }, meaning) : null);
    };
    const named = isKeys || of ? null : h("div", { class: "field" }, h("label", { for: "f-name" }, "Name"), inputs.name = h("input", { id: "f-name", required: true, pattern: "[A-Za-z0-9_.\\-]{1,64}", autocomplete: "off", placeholder: "search" }));
    const rest = shown.slice(isKeys ? 8 : 99);
    const box = dialog(title, h("form", { class: "attributes", onsubmit: async (event) => {
      event.preventDefault();
      const changed = {};
      for (const [attribute] of shown) {
        const now = inputs[attribute].value.trim().replace(LIMITS[attribute] ? /[,\s_]/g : /$^/, "");
        if (now !== words(of?.[attribute])) changed[attribute] = now || null;
      }
      if (!of) for (const [attribute, to] of Object.entries(changed)) if (to == null) delete changed[attribute];
      submit.disabled = true;
      said.textContent = "";
      for (const input of Object.values(inputs)) input.removeAttribute("aria-invalid");
      try {
        const answer = await done(changed, inputs.name?.value.trim());
        box.close();
        await finish(answer, inputs.name?.value.trim());
      } catch (error) {
        said.textContent = error.message;
        const bad = inputs[error.param];
        (bad ?? said).setAttribute?.("aria-invalid", "true");
        bad?.closest("details")?.setAttribute("open", "");
        bad?.focus();
      }
      submit.disabled = false;
    } }, named, shown.slice(0, isKeys ? 8 : 99).map(field), rest.length ? h("details", { open: rest.some(([attribute]) => words(of?.[attribute])) }, h("summary", null, "What it may do"), rest.map(field)) : null,
    said, h("p", { class: "actions" }, submit, button("Cancel", () => box.close()))));
    box.querySelector("input, select").focus();
  }

  async function know() {
    if (isKeys) groups = (await get("groups").catch(() => ({ groups: [] }))).groups;
  }

  async function make() {
    await know();
    form(isKeys ? "New key" : "New group", null, isKeys ? "Make the key" : "Make the group", (attributes, named) => send("POST", kind, isKeys ? { attributes } : { name: named, attributes }));
  }

  async function edit(of) {
    await know();
    form(`Change ${name(of)}`, of, "Change", (attributes) => send("PATCH", `${kind}/${encodeURIComponent(id(of))}`, { attributes }));
  }

  /** Ask before something is done. */
  function sure(title, advice, label, act, extra = null) {
    const said = h("p", { class: "bad", role: "alert" });
    const go = button(label, async () => {
      go.disabled = true;
      try {
        const answer = await act();
        box.close();
        await finish(answer);
      } catch (error) { said.textContent = error.message; go.disabled = false; }
    }, { class: "main" });
    const box = dialog(title, h("p", null, advice), extra, said, h("p", { class: "actions" }, go, button("Cancel", () => box.close())));
    go.focus();
  }

  const toggle = (of) => sure(of.disabled ? `Enable ${name(of)}?` : `Disable ${name(of)}?`, of.disabled ? "Its requests are served again." : "Its requests get 401 from now on, until it is enabled again. Requests in flight go on.", of.disabled ? "Enable" : "Disable",
    () => send("PATCH", `keys/${of.id}`, { disabled: !of.disabled }));

  const remove = (of) => sure(`Remove ${name(of)}?`, isKeys ? "Its requests get 401 from now on. This cannot be undone; to stop it for a while, disable it. Its rows stay in the ledger." : "Keys that are in it must leave it first.", "Remove",
    async () => { const answer = await send("DELETE", `${kind}/${encodeURIComponent(id(of))}`); change({ open: null }); return answer; });

  function rotate(of) {
    let grace = "24h";
    sure(`Rotate ${name(of)}?`, "It gets a new secret. The old one stays valid for the time of grace, so that nothing stops meanwhile. Id, limits and what was used of them stay.", "Rotate", () => send("POST", `keys/${of.id}/rotate`, { grace }),
      h("div", { class: "field" }, h("span", null, "Grace"), choice("grace", "Grace", [["0s", "none"], ["1h", "1 h"], ["24h", "24 h"], ["7d", "7 d"]], grace, (to) => { grace = to; })));
  }

  /** Say what came of a change, and show a secret once. */
  async function finish(answer, named) {
    const made = answer.key ?? answer.group;
    const { ok, message } = answer.reload ?? {};
    const result = h("div", { class: `result ${ok === false ? "bad" : "good"}`, role: "status" }, h("p", null, ok === false ? "Written, and not in force yet: " : "In force. ", message ?? ""), (answer.warnings ?? []).map((one) => h("p", { class: "warn" }, one)));
    fill(told, made ? null : result);
    if (answer.secret) secret(answer, made);
    if (made) change({ open: made.id ?? made.name ?? named, match: null }, true);
    await load();
    if (made) drawer(result);
    say(result.textContent);
  }

  return {
    show() { toolbar(); if (all.length) { draw(); drawer(); } load(); },
    redraw() { draw(); drawer(); },
    close() { stop.abort(); clearTimeout(timer); },
    keys(key) {
      if (key === "Escape") { if (!side.hidden) change({ open: null }); return true; }
      const step = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1 }[key];
      if (!step) return false;
      const links = [...list.querySelectorAll("tbody th a")];
      const to = links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + step))];
      to?.focus();
      to?.scrollIntoView({ block: "nearest" });
      return true;
    },
  };
};

/** The one time that a secret is shown, with what to paste. */
async function secret(answer, key) {
  const base = ((await get("live", null, { quiet: true }).catch(() => null))?.listening?.[0] ?? "http://127.0.0.1:8080").replace(/\/$/, "");
  const model = (key.models ?? []).find((one) => !one.includes("*")) ?? "gpt-4o-mini";
  const snippets = {
    curl: `curl ${base}/v1/chat/completions \\\n  -H "Flowstack-Auth: Bearer ${answer.secret}" \\\n  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '{"model": "${model}", "messages": [{"role": "user", "content": "Hi"}]}'`,
    Python: `from openai import OpenAI\n\nclient = OpenAI(\n    base_url="${base}/v1",\n    default_headers={"Flowstack-Auth": "Bearer ${answer.secret}"},\n)\nanswer = client.chat.completions.create(\n    model="${model}",\n    messages=[{"role": "user", "content": "Hi"}],\n)\nprint(answer.choices[0].message.content)`,
    Node: `import OpenAI from "openai";\n\nconst client = new OpenAI({\n  baseURL: "${base}/v1",\n  defaultHeaders: { "Flowstack-Auth": "Bearer ${answer.secret}" },\n});\nconst answer = await client.chat.completions.create({\n  model: "${model}",\n  messages: [{ role: "user", content: "Hi" }],\n});\nconsole.log(answer.choices[0].message.content);`,
  };
  const shown = h("code", { class: "secret whole" }, answer.secret);
  const code = h("pre", { tabindex: "0" }), beside = h("span");
  const tell = (language) => { code.textContent = snippets[language]; fill(beside, copier(snippets[language], "Copy", code)); };
  const box = dialog("The key’s secret", h("p", null, "It is shown this once, and kept nowhere: store it now. Whoever has it may spend what the key may spend."),
    h("p", { class: "secretline" }, shown, copier(answer.secret, "Copy", shown)),
    h("p", { class: "secretline" }, choice("language", "Language", Object.keys(snippets).map((one) => [one, one]), "curl", tell), h("span", { class: "grow" }), beside), code,
    h("p", { class: "actions" }, button("I have stored it", () => box.close(), { class: "main" })));
  box.classList.add("broad");
  box.addEventListener("cancel", (event) => event.preventDefault()); // Escape would lose it
  tell("curl");
}
