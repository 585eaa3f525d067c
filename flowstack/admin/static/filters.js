/** The bar above figures and rows: period and filters. All of it is in the address. */

import { get } from "./api.js";
import { button, choice, fill, h, select } from "./dom.js";
import { time, zoneName } from "./format.js";
import { change, FIELDS, iso, PERIODS, route } from "./state.js";

/** Filters of rows alone: parameter of the address and of the API, label, unit, how a value is read. */
const RANGES = [
  ["cost_min", "cost from", "USD"], ["cost_max", "cost to", "USD"],
  ["duration_min", "duration from", "ms"], ["duration_max", "duration to", "ms"],
];

export const ROW_FILTERS = ["id", ...RANGES.map(([name]) => name)];

/** What is asked: pairs for the API. `rows` adds what only rows are asked for. */
export function asked(params, rows = false) {
  const found = params.getAll("where").map((one) => ["where", one]);
  if (rows) for (const name of ROW_FILTERS) if (params.get(name)) found.push([name, params.get(name)]);
  return found;
}

/** The controls of the period. */
export function periods(found) {
  const custom = h("form", { class: "custom", hidden: found.word != null, onsubmit: (event) => {
    event.preventDefault();
    const [from, until] = [...event.target.querySelectorAll("input")].map((input) => (input.value ? Date.parse(`${input.value}${zoneName() === "UTC" ? "Z" : ""}`) : null));
    if (from != null) change({ since: iso(from), until: until == null ? null : iso(until), step: null });
  } },
    h("label", null, "From ", h("input", { type: "datetime-local", value: local(found.since), required: true })),
    h("label", null, "to ", h("input", { type: "datetime-local", value: local(found.until) })),
    h("span", { class: "muted" }, zoneName()),
    h("button", { type: "submit" }, "Show"));
  return [
    choice("period", "Period", [...PERIODS, ["custom", "Custom"]], found.word ?? "custom", (word) => {
      if (word !== "custom") change({ since: word, until: null, step: null });
      else { custom.hidden = false; custom.querySelector("input").focus(); }
    }),
    custom,
  ];
}

/** A moment as `datetime-local` has it, in the zone that is shown. */
function local(ms) {
  const shift = zoneName() === "UTC" ? 0 : new Date(ms).getTimezoneOffset() * 60_000;
  return new Date(ms - shift).toISOString().slice(0, 16);
}

/** What is filtered by, each with a button that takes it out, and the form that adds one. */
export function filters(rows, since) {
  const { params } = route();
  const chips = [
    ...params.getAll("where").map((one) => {
      const at = one.indexOf("=");
      return chip(one.slice(0, at).replace("attribute:", ""), one.slice(at + 1), () => change({ where: params.getAll("where").filter((other) => other !== one) }));
    }),
    ...(rows ? ROW_FILTERS : []).filter((name) => params.get(name)).map((name) => {
      const [, label, unit] = RANGES.find(([known]) => known === name) ?? [name, name, ""];
      return chip(label, `${params.get(name)} ${unit}`.trim(), () => change({ [name]: null }));
    }),
  ];
  return [...chips, adder(rows, since), chips.length > 1 ? button("Clear", () => change({ where: null, ...Object.fromEntries(ROW_FILTERS.map((name) => [name, null])) }), { class: "plain" }) : null];
}

function chip(name, value, remove) {
  return h("span", { class: "chip" }, h("span", { class: "muted" }, name), " ", h("bdi", { class: "cut" }, value || "(none)"),
    button("×", remove, { class: "close", "aria-label": `Take out the filter ${name} ${value}` }));
}

const add = (name, pattern) => change({ where: [...new Set([...route().params.getAll("where"), `${name}=${pattern}`])] });

/** What is a request's id and nothing else: ours (32 hexadecimal digits), or OpenAI's and Anthropic's. */
const ID = /^([0-9a-f]{32}|req_\w{16,})$/;

let field = "model";

/** Field, value, Enter. Values that there are in the period are offered. */
function adder(rows, since) {
  if (!rows && (ROW_FILTERS.includes(field))) field = "model";
  const known = h("datalist", { id: "known-values" });
  const value = h("input", { type: "search", id: "filter-value", "aria-label": "Value to filter by", list: "known-values", autocomplete: "off", spellcheck: "false", placeholder: "value, * for any" });
  const offer = async () => {
    fill(known);
    value.placeholder = { id: "ours or the provider's", attribute: "name=value", status: "429 or 5*" }[field] ?? (RANGES.find(([name]) => name === field)?.[2] ?? "value, * for any");
    if (!FIELDS.includes(field)) return;
    const found = await get("report", [["by", field], ["since", iso(since)], ["sort", "requests"], ["limit", 50]], { quiet: true }).catch(() => null);
    if (found) fill(known, found.groups.map((group) => h("option", { value: group[field] ?? "" })));
  };
  value.addEventListener("focus", offer, { once: true });
  const form = h("form", { class: "adder", role: "search", onsubmit: (event) => {
    event.preventDefault();
    const words = value.value.trim();
    if (!words && !FIELDS.includes(field)) return value.focus();
    const written = /^(\w+|attribute:[^=]+)=(.*)$/s.exec(words); // as the command takes it: owner=alice
    if (field !== "attribute" && written && (FIELDS.includes(written[1]) || written[1].startsWith("attribute:"))) return add(written[1], written[2]);
    if (rows && (ID.test(words) || field === "id")) return change({ id: words, ...(["24h", "7d", null].includes(route().params.get("since")) ? { since: "30d" } : {}) });
    if (field === "attribute") {
      if (!words.includes("=")) { value.setCustomValidity("Write name=value, such as team=search."); value.reportValidity(); return; }
      add(`attribute:${words.slice(0, words.indexOf("=")).toLowerCase()}`, words.slice(words.indexOf("=") + 1));
    } else if (FIELDS.includes(field)) add(field, words);
    else if (!(Number(words) >= 0)) { value.setCustomValidity("Write a number from 0 up."); value.reportValidity(); }
    else change({ [field]: words });
  } },
    select("Field to filter by", [...(rows ? [["id", "request id"]] : []), ...FIELDS.map((name) => [name, name]), ["attribute", "attribute"],
      ...(rows ? RANGES.map(([name, label]) => [name, label]) : [])], field, (to) => { field = to; value.value = ""; offer(); value.focus(); }),
    value, known, h("button", { type: "submit" }, "Filter"));
  value.addEventListener("input", () => value.setCustomValidity(""));
  return form;
}

/** The period in words, for headings and for who hears it. */
export const inWords = ({ since, until }) => `${time(since, "minute")} to ${time(until, "minute")} ${zoneName()}`;
