/** Figures and times as people read them. What is not known is a dash, and never 0. */

export const DASH = "–";

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimals = (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const CENTS = decimals(2), FOUR = decimals(4), ONE = decimals(1);
const THREE = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const SMALL = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** 21,204 */
export const count = (value) => (value == null ? DASH : WHOLE.format(value));

/** 12.1 M */
export function short(value) {
  if (value == null) return DASH;
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size * (unit === "k" ? 10 : 1)) return `${(value / size >= 999.5 ? WHOLE : THREE).format(value / size)} ${unit}`;
  return value < 10 && value % 1 ? ONE.format(value) : WHOLE.format(value);
}

/** The same on an axis: 4 M */
export const shortest = (value) => short(value).replace(/(\.\d*?)0+( |$)/, "$1$2").replace(/\.( |$)/, "$1");

/** US dollars: to the cent from one dollar up, below that to four decimals, or three digits that count. */
export function usd(value) {
  if (value == null) return DASH;
  if (value === 0) return "$0.00";
  const size = Math.abs(value);
  return `${value < 0 ? "−" : ""}$${size >= 1 ? CENTS.format(size) : size >= 0.01 ? FOUR.format(size) : SMALL.format(size)}`;
}

/** Dollars on an axis. */
export const usdShort = (value) => (value === 0 ? "$0" : value >= 10_000 ? `$${shortest(value)}` : value >= 10 || value % 1 === 0 ? `$${WHOLE.format(value)}` : `$${SMALL.format(value)}`);

/** 0.26 ms, 312 ms, 4.84 s, 2 min 5 s */
export function duration(ms) {
  if (ms == null) return DASH;
  if (ms < 10) return `${CENTS.format(ms)} ms`;
  if (ms < 999.5) return `${WHOLE.format(ms)} ms`;
  if (ms < 60_000) return `${CENTS.format(ms / 1000)} s`;
  return spell(ms / 1000);
}

/** The same on an axis: 0, 200 ms, 2.5 s, 20 s */
export const durationShort = (ms) => (ms === 0 ? "0" : ms < 1000 ? `${SMALL.format(ms)} ms` : ms < 60_000 ? `${SMALL.format(ms / 1000)} s` : spell(ms / 1000));

/** Seconds in the two largest units. */
export function spell(seconds) {
  const units = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  if (seconds < 1) return "0 s";
  const [unit, size] = units[at];
  const first = Math.floor(seconds / size), next = units[at + 1];
  const rest = next ? Math.floor((seconds - first * size) / next[1]) : 0;
  return `${first} ${unit}${rest ? ` ${rest} ${next[0]}` : ""}`;
}

/** 1.9% */
export function percent(share) {
  if (share == null || !Number.isFinite(share)) return DASH;
  if (share && Math.abs(share) < 0.0005) return "<0.1%";
  return `${Math.abs(share) >= 0.1 || share === 0 ? WHOLE.format(share * 100) : ONE.format(share * 100)}%`;
}

/** 12.3 kB */
export function bytes(value) {
  if (value == null) return DASH;
  if (value < 1000) return `${WHOLE.format(value)} B`;
  return `${short(value < 10_000 ? value * 1 : value).replace(/ ?([kMGT]?)$/, " $1B")}`;
}

/** How much more than before: +9%; nothing where there is nothing to compare with. */
export function change(now, before) {
  if (now == null || before == null) return "";
  if (!before) return now ? "new" : "";
  const share = now / before - 1;
  if (Math.abs(share) < 0.005) return "±0%";
  if (share > 9.995) return `×${WHOLE.format(now / before)}`;
  return `${share > 0 ? "+" : "−"}${WHOLE.format(Math.abs(share) * 100)}%`;
}

let zone = "utc";

/** Show times in `utc`, or in the browser's zone (`local`). */
export const useZone = (name) => { zone = name; };

/** Its name, as it stands beside times. */
export const zoneName = () => (zone === "utc" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone);

const STYLES = {
  day: { day: "numeric", month: "short" },
  date: { day: "numeric", month: "short", year: "numeric" },
  clock: { hour: "2-digit", minute: "2-digit" },
  minute: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
  second: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" },
};
const made = new Map();

/** A time (a Date, RFC 3339, or Unix milliseconds) in one of the styles; `in_zone` takes the place of the chosen one. */
export function time(value, style = "minute", in_zone = zone) {
  if (value == null) return DASH;
  const name = `${style} ${in_zone}`;
  if (!made.has(name))
    made.set(name, new Intl.DateTimeFormat("en-GB", { ...STYLES[style], hourCycle: "h23", timeZone: in_zone === "utc" ? "UTC" : undefined }));
  return made.get(name).format(new Date(value)).replace(",", "").replace("Sept", "Sep");
}

/** The same, whole, for a title. */
export function exact(value) {
  if (value == null) return "";
  const shown = typeof value === "string" && zone === "utc" ? value.replace("T", " ").replace(/(\.\d{3})\d*/, "$1").replace("Z", "") : time(value, "second");
  return `${shown} ${zoneName()}`;
}

/** 2 h ago */
export function ago(value, now) {
  const seconds = (now - new Date(value)) / 1000;
  return seconds < 5 ? "now" : `${spell(seconds).replace(/ \d+ \w+$/, "")} ago`;
}

/** In 9 d, for a time to come. */
export const ahead = (value, now) => `in ${spell(Math.max(0, (new Date(value) - now) / 1000)).replace(/ \d+ \w+$/, "")}`;
