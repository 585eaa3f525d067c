/** Charts over time: stacked bars of sums, or lines. Drawn by uPlot, with a table of the same figures for who sees none. */

import { h, table } from "./dom.js";
import { DASH, time } from "./format.js";

/** A colour of the style sheet, as the canvas takes it. */
function colour(name) {
  const probe = document.getElementById("said");
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = "";
  return found;
}

/** Pixels: half of the widest label of a step, with a little room; and what the axis of the amounts takes. */
const LABEL = 24, AXIS = 60;

/** The start of a step in words. */
export const stepName = (at, size, style = "minute") => (size < 86_400_000 ? time(at, style) : time(at, "day", "utc"));

/**
 * Draw into `place`, and again when its width changes; gives a function that takes it away.
 *
 * `spec`: `label` (one sentence), `kind` (`bars`, `lines`), `at` (starts of the steps, ms), `size` (of a step, ms),
 * `series` ({name, colour, values, dash}), `before` (values of the period before, a dashed line) and `format`.
 * `pick(index)` is told where the pointer or the keyboard is, null for nowhere; `zoom(from, until)` which part was drawn over.
 */
export function chart(place, spec) {
  const { at, size, series, before } = spec;
  const bars = spec.kind === "bars";
  const stacked = bars ? stack(series) : series.map(({ values }) => values);
  const x = at.map((ms) => ms / 1000);
  const muted = colour("muted"), line = colour("line"), earlier = colour("edge");
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const width = size / 1000;
  const drawn = [...stacked.keys()];
  if (bars) drawn.reverse(); // the whole stack first, and over it what is below
  const paths = bars ? uPlot.paths.bars({ size: [0.8, 96] }) : undefined;
  const daily = size >= 86_400_000;
  const options = {
    width: Math.max(200, place.clientWidth), height: spec.height ?? 260,
    padding: [8, (u) => (bars ? Math.max(0, LABEL - (u.width - AXIS) / at.length / 2) : LABEL), 0, 0], // the last label stands over its step's middle
    legend: { show: false },
    tzDate: (seconds) => (daily || time(0, "clock") === time(0, "clock", "utc") ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
    scales: {
      x: { range: () => [x[0] - (bars ? width / 2 : 0), x.at(-1) + (bars ? width / 2 : 0)] },
      y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
    },
    cursor: {
      y: false, points: { show: !bars, size: 7 }, drag: { x: Boolean(spec.zoom), y: false, setScale: false },
    },
    axes: [
      {
        stroke: muted, font, grid: { show: false }, ticks: { stroke: line, size: 4 }, gap: 4, size: 28, space: daily ? 56 : 64,
        incrs: daily ? [1, 2, 3, 7, 14, 28].map((days) => days * 86_400) : [1, 2, 3, 6, 12, 24, 48, 96].map((hours) => hours * 3600),
        values: (_, splits) => splits.map((seconds, nth) => (seconds < x[0] || seconds > x.at(-1) ? "" : axisName(seconds * 1000, daily, nth))),
      },
      {
        stroke: muted, font, size: widest(font), gap: 6, space: 44, ticks: { show: false }, grid: { stroke: line, width: 1 },
        values: (_, splits) => splits.map((value) => (value == null ? "" : spec.axis(value))),
      },
    ],
    series: [
      {},
      ...drawn.map((nth) => (bars
        ? { fill: colour(series[nth].colour), width: 0, points: { show: false }, paths }
        : { stroke: colour(series[nth].colour), width: 1.75, dash: series[nth].dash, points: { show: at.length < 3 }, spanGaps: false })),
      ...(before ? [{ stroke: earlier, width: 1.5, dash: [4, 3], points: { show: false }, spanGaps: false, ...(bars ? { paths: stair(width) } : {}) }] : []),
    ],
    hooks: {
      setCursor: [(u) => spec.pick?.(u.cursor.left < 0 ? null : u.cursor.idx)],
      setSelect: [(u) => {
        if (u.select.width < 4) return;
        const [from, until] = [u.select.left, u.select.left + u.select.width].map((left) => u.posToVal(left, "x") * 1000);
        u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        const half = bars ? size / 2 : 0; // a bar stands over the middle of its step
        spec.zoom(Math.floor((from + half) / size) * size, Math.ceil((until + half) / size) * size);
      }],
    },
  };
  const wrap = h("div", { class: "plot", role: "img", tabindex: "0", "aria-label": `${spec.label} The left and right arrow keys read it step by step.` });
  place.replaceChildren(wrap);
  const plot = new uPlot(options, [x, ...drawn.map((nth) => stacked[nth]), ...(before ? [before] : [])], wrap);
  let chosen = null;
  wrap.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") chosen = null;
    else if (move) chosen = Math.max(0, Math.min(x.length - 1, (chosen ?? (move < 0 ? x.length : -1)) + move));
    else return;
    event.preventDefault();
    plot.setCursor(chosen == null ? { left: -10, top: -10 } : { left: plot.valToPos(x[chosen], "x"), top: 10 });
    if (chosen != null) document.getElementById("said").textContent = `${stepName(at[chosen], size)}: ${series.map(({ name, values }) => `${name ?? "(none)"} ${spec.format(values[chosen])}`).join(", ")}`;
  });
  wrap.addEventListener("blur", () => { chosen = null; plot.setCursor({ left: -10, top: -10 }); });
  const observer = new ResizeObserver(() => {
    if (place.clientWidth && Math.abs(place.clientWidth - plot.width) > 1) plot.setSize({ width: place.clientWidth, height: plot.height });
  });
  observer.observe(place);
  return () => { observer.disconnect(); plot.destroy(); };
}

/** How wide an axis is: as its longest label, and no narrower than is usual, so that most charts begin at one line. */
function widest(font) {
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = font;
  return (_, labels) => Math.max(AXIS, ...(labels ?? []).map((label) => Math.ceil(measure.measureText(label).width) + 8));
}

/** What each series reaches up to, the first at the bottom. */
function stack(series) {
  const sums = series[0]?.values.map(() => 0) ?? [];
  return series.map(({ values }) => values.map((value, nth) => (sums[nth] += value ?? 0)));
}

/** A line of steps as wide as the bars. */
function stair(width) {
  return (u, nth, from, to) => {
    const path = new Path2D();
    for (let at = from; at <= to; at++) {
      const value = u.data[nth][at];
      if (value == null) continue;
      const y = u.valToPos(value, "y", true);
      const [left, right] = [u.data[0][at] - width / 2, u.data[0][at] + width / 2].map((seconds) => u.valToPos(seconds, "x", true));
      path[at === from || u.data[nth][at - 1] == null ? "moveTo" : "lineTo"](left, y);
      path.lineTo(right, y);
    }
    return { stroke: path, fill: null, clip: null, band: null, gaps: null, flags: 1 };
  };
}

function axisName(at, daily, nth) {
  if (daily) return time(at, "day", "utc");
  const clock = time(at, "clock");
  return clock === "00:00" || !nth ? `${time(at, "day")}${clock === "00:00" ? "" : ` ${clock}`}` : clock;
}

/** The figures of a chart as a table, a step a line. */
export function asTable(caption, spec) {
  return h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": caption }, table(caption, [
    { head: spec.size < 86_400_000 ? "From" : "Day (UTC)", cell: (nth) => stepName(spec.at[nth], spec.size), class: "nowrap" },
    ...spec.series.map(({ name, values }) => ({ head: h("bdi", { class: "cut" }, name ?? "(none)"), number: true, cell: (nth) => spec.format(values[nth]) })),
    ...(spec.before ? [{ head: "Period before", number: true, cell: (nth) => (spec.before[nth] == null ? DASH : spec.format(spec.before[nth])) }] : []),
  ], [...spec.at.keys()]));
}
