// Curves of runs on uPlot: colours by theme, shared cursor, zoom by steps.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { current, number, t } from "./language.js";
import { Amount } from "./parts.js";
import { Code, plain } from "./text.js";

// Okabe and Ito's colours, which most colour-blind people tell apart; the dashes tell them apart for everyone.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#3aa0d8", "#7a5195", "#6b6b6b"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const HEIGHT = 220;
const SHOWN_ROWS = 20;
const MAX_POINTS = 600;

// What is drawn together, by the names without `eval_`; what is left has a chart of its own each.
const GROUPS = [
  ["loss", ["loss", "kto_loss", "preference_loss", "cpo_loss", "nll_loss"]],
  [
    "accuracies",
    [
      "preference_accuracy",
      "margin_accuracy",
      "rewards/accuracies",
      "overall_accuracy",
      "desirable_accuracy",
      "undesirable_accuracy",
    ],
  ],
  ["margins", ["rewards/margins", "margin"]],
  ["rewards", ["rewards/chosen", "rewards/rejected"]],
  ["kl", ["kl", "kl_estimate", "mean_kl"]],
  ["logps", ["logps/chosen", "logps/rejected"]],
  [
    "samples",
    [
      "sample_in_language",
      "sample_script_leak",
      "sample_han_leak",
      "sample_latin_leak",
      "sample_repetition",
      "sample_word_repetition",
    ],
  ],
];
const MAIN_GROUPS = new Set(["loss", "accuracies", "margins", "rewards", "kl"]);

const colourOf = (place) => COLOURS[place % COLOURS.length];
const ink = (name) => getComputedStyle(document.querySelector(`#probe-${name}`)).color;

/** Elements whose computed colours a canvas uses. */
export const Probes = () => html`<span id="probe-ink" hidden></span><span id="probe-line" hidden></span>`;

/** What to ask of the metrics for charts. `range`: `[first, last]` steps, or null for all. */
export const question = (range) => ({
  max_points: MAX_POINTS,
  only_current: true,
  first_step: range?.[0],
  last_step: range?.[1],
});

/**
 * Charts of some jobs' metrics: `[{key, title, curves: [{label, points, colour, dash}]}]`.
 * One job: a colour a metric. Several: a colour a job and a dash a metric.
 */
export function charts(jobs) {
  const base = (name) => name.replace(/^eval_/, "");
  // Rows may be such that a metric is always null: nothing to draw.
  const hasValues = (job, name) => job.series[name]?.some(({ value }) => value !== null);
  const names = [...new Set(jobs.flatMap((job) => Object.keys(job.series).filter((name) => hasValues(job, name))))].sort();
  const known = new Set(GROUPS.flatMap(([, members]) => members));
  const rest = [...new Set(names.map(base))].filter((name) => !known.has(name)).map((name) => [name, [name]]);
  return [...GROUPS, ...rest]
    .map(([key, members]) => {
      const drawn = members.flatMap((member) => names.filter((name) => base(name) === member));
      const curves = jobs.flatMap((job, jobPlace) =>
        drawn
          .filter((name) => hasValues(job, name))
          .map((name) => {
            const place = drawn.indexOf(name);
            return {
              label: plain(jobs.length > 1 ? `${job.title} · ${name}` : name),
              points: job.series[name],
              colour: colourOf(jobs.length > 1 ? jobPlace : place),
              dash: DASHES[(jobs.length > 1 ? place : Math.floor(place / COLOURS.length)) % DASHES.length],
            };
          }),
      );
      return { key, title: GROUPS.some(([each]) => each === key) ? t(`chart.${key}`) : plain(key), curves };
    })
    .filter(({ curves }) => curves.length > 0);
}

/** The charts, the important ones first and the others folded away, with one zoom for all. */
export function Curves({ jobs, range, onRange }) {
  const all = charts(jobs);
  const isMain = ({ key }) => MAIN_GROUPS.has(key);
  if (!all.length) return html`<p>${t("chart.none")}</p>`;
  const shown = (chart) => html`<${Chart} key=${chart.key} ...${chart} range=${range} onRange=${onRange} />`;
  return html`
    <${Zoom} range=${range} onRange=${onRange} />
    <div class="charts">${all.filter(isMain).map(shown)}</div>
    <${Folded} title=${t("chart.others")}>${() => html`<div class="charts">${all.filter((each) => !isMain(each)).map(shown)}</div>`}</${Folded}>
  `;
}

/** A part of a page that is made when it is opened. */
export function Folded({ title, children }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${title}</summary>
    ${isOpen && children()}
  </details>`;
}

/** The steps that are shown, for those who use no mouse. */
function Zoom({ range, onRange }) {
  const first = useRef(null);
  const last = useRef(null);
  const apply = (event) => {
    event.preventDefault();
    const [from, to] = [first, last].map((input) => parseInt(input.current.value, 10));
    if (from <= to) onRange([from, to]);
  };
  return html`<form class="zoom" onSubmit=${apply}>
    <label>${t("chart.from")} <input ref=${first} type="number" min="0" value=${range?.[0] ?? ""} /></label>
    <label>${t("chart.to")} <input ref=${last} type="number" min="0" value=${range?.[1] ?? ""} /></label>
    <button>${t("chart.zoom")}</button>
    <button type="button" disabled=${!range} onClick=${() => onRange(null)}>${t("chart.all")}</button>
    <span class="hint">${t("chart.drag")}</span>
  </form>`;
}

/** One chart, with its values as a table for those who cannot see it. */
function Chart({ title, curves, range, onRange }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shape = JSON.stringify([curves.map(({ label, colour, dash }) => [label, colour, dash]), range, current()]);
  const [theme, setTheme] = useState(0);
  useEffect(() => {
    const renew = () => setTheme((count) => count + 1);
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", renew);
    addEventListener("theme", renew);
    return () => {
      media.removeEventListener("change", renew);
      removeEventListener("theme", renew);
    };
  }, []);
  useEffect(() => {
    plot.current = new uPlot(options(place.current.clientWidth, curves, range, onRange), aligned(curves), place.current);
    const watch = new ResizeObserver(() => plot.current?.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    watch.observe(place.current);
    return () => {
      watch.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, theme]);
  useEffect(() => plot.current?.setData(aligned(curves)), [curves]);
  return html`
    <figure class="chart">
      <figcaption translate=${/[/_]/.test(title) ? false : undefined}>${title}</figcaption>
      <div class="plot" dir="ltr" translate=${false} ref=${place}></div>
      <${Folded} title=${t("chart.table")}>${() => html`<${Values} curves=${curves} />`}</${Folded}>
    </figure>
  `;
}

const Values = ({ curves }) => html`
  ${curves.map(
    ({ label, points }) => html`<table>
      <caption><${Code} text=${label} /></caption>
      <thead>
        <tr>
          <th scope="col">${t("chart.step")}</th>
          <th scope="col">${t("chart.value")}</th>
        </tr>
      </thead>
      <tbody>
        ${points
          .slice(-SHOWN_ROWS)
          .map(({ step, value }) => html`<tr><td><${Amount} value=${step} /></td><td><${Amount} value=${value} /></td></tr>`)}
      </tbody>
    </table>`,
  )}
`;

const aligned = (curves) => uPlot.join(curves.map(({ points }) => [points.map((p) => p.step), points.map((p) => p.value)]));

/** The range of values. uPlot fails to divide an axis whose ends differ by about a millionth of themselves. */
function rangeOf(_, least, most) {
  if (least === null) return [null, null];
  const apart = 1e-4 * Math.max(Math.abs(least), Math.abs(most));
  const [from, to] = most - least < apart ? [least - apart, most + apart] : [least, most];
  return uPlot.rangeNum(from, to, 0.1, true);
}

function options(width, curves, range, onRange) {
  const shown = (_, value) => (value === null || value === undefined ? "–" : number(value));
  // Without `values` uPlot writes numbers in the browser's language, which may not be the page's.
  const values = (_, ticks) => ticks.map((tick) => number(tick, 4));
  const axis = { values, stroke: ink("ink"), grid: { stroke: ink("line"), width: 1 }, ticks: { stroke: ink("line"), width: 1 } };
  return {
    width,
    height: HEIGHT,
    cursor: {
      sync: { key: "steps" },
      // The zoom asks for the points between: what is drawn is a selection of them.
      drag: { x: true, y: false, setScale: false },
      bind: { dblclick: () => () => onRange(null) },
    },
    scales: { x: { time: false, range: range ? () => range : undefined }, y: { range: rangeOf } },
    axes: [axis, { ...axis, size: 64 }],
    series: [
      { label: t("chart.step"), value: shown },
      ...curves.map(({ label, colour, dash, points }) => ({
        label,
        stroke: colour,
        dash,
        width: 2,
        value: shown,
        points: { show: points.length < 60, size: 5, fill: colour },
      })),
    ],
    hooks: {
      setSelect: [
        (plot) => {
          const { left, width: size } = plot.select;
          if (size < 4) return;
          const [from, to] = [left, left + size].map((place) => Math.round(plot.posToVal(place, "x")));
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (from < to) onRange([Math.max(0, from), to]);
        },
      ],
    },
  };
}
