/** What is shown stands behind the `#` of the address, so that a link shows what its sender saw. */

const HOUR = 3_600_000, DAY = 24 * HOUR;

/** Periods by the word that `flowstack usage --since` takes. */
export const PERIODS = [["24h", "24 h"], ["7d", "7 d"], ["30d", "30 d"], ["month", "Month"]];

/** Fields by which rows are grouped and filtered; attributes come in addition. */
export const FIELDS = ["model", "owner", "key", "group", "upstream", "status", "end", "error", "node"];

const KEPT = ["since", "until", "where"];

/** The view and its parameters. */
export function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: path || "overview", params: new URLSearchParams(query) };
}

/** The address of a view. A list sets a parameter several times, null takes it out; period and filters stay. */
export function link(view, changes = {}, keep = KEPT) {
  const params = new URLSearchParams();
  for (const [name, value] of route().params) if ((keep === "all" || keep.includes(name)) && !(name in changes)) params.append(name, value);
  for (const [name, value] of Object.entries(changes))
    for (const one of [value].flat()) if (one != null && one !== "") params.append(name, one);
  const query = params.toString().replaceAll("%3D", "=").replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%40", "@");
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Change parameters of the view that is shown; `replace` makes no step for the Back button. */
export function change(changes, replace = false) {
  const to = link(route().view, changes, "all");
  if (replace) {
    history.replaceState(null, "", to);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = to;
}

/** The link of a row of a report: the same view with one filter more. A value that is not there is asked for as nothing. */
export function narrowed(view, field, value) {
  return link(view, { where: [...new Set([...route().params.getAll("where").filter((one) => !one.startsWith(`${field}=`)), `${field}=${value ?? ""}`])] });
}

/**
 * The period: when it begins and ends, how it is cut for charts, and the period of the same length before it
 * (of a month, as much of the one before as has passed of this one). Times are Unix milliseconds.
 */
export function period(params, now) {
  now = Math.ceil(now / 1000) * 1000; // what is asked for is asked by the second: what was just now is in it
  const word = params.get("since") ?? "7d";
  const until = params.has("until") ? Math.min(read(params.get("until"), now), now + DAY) : now;
  const since = Math.min(read(word, now), until - 60_000);
  const length = until - since;
  // By whole days, so that nights stand under nights; and a month under the month before.
  let before = since - (length > DAY / 2 ? Math.ceil(length / DAY) * DAY : length);
  if (word === "month") before = new Date(since).setUTCMonth(new Date(since).getUTCMonth() - 1);
  const step = params.get("step") ?? (length <= 3 * DAY ? "hour" : "day");
  return {
    word: PERIODS.some(([known]) => known === word) && !params.has("until") ? word : null,
    since, until, step, size: step === "hour" ? HOUR : DAY,
    prior: { since: before, until: Math.min(since, before + length) },
  };
}

/** A moment as commands take it, or null. */
function read(word, now) {
  const back = /^(\d{1,6})([mhdw])$/.exec(word);
  if (back) return now - back[1] * { m: 60_000, h: HOUR, d: DAY, w: 7 * DAY }[back[2]];
  const today = Math.floor(now / DAY) * DAY;
  if (word === "today") return today;
  if (word === "yesterday") return today - DAY;
  if (word === "month") return new Date(today).setUTCDate(1);
  const found = Date.parse(word);
  return Number.isNaN(found) ? now - 7 * DAY : found;
}

/** A moment for the API and for links: RFC 3339 in UTC, to the second. */
export const iso = (ms) => new Date(Math.floor(ms / 1000) * 1000).toISOString().replace(".000Z", "Z");

/** Each start of a step in the period. */
export function steps({ since, until, size }) {
  const found = [];
  for (let at = Math.floor(since / size) * size; at < until; at += size) found.push(at);
  return found;
}

/** What a browser remembers; a browser that may not keep anything forgets it with the page. */
export const remembered = {
  get(name, none) {
    try { return localStorage.getItem(`flowstack.${name}`) ?? none; } catch { return none; }
  },
  set(name, value) {
    try { localStorage.setItem(`flowstack.${name}`, value); } catch { /* it lasts as long as the page */ }
  },
};
