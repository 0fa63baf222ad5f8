"use strict";
// What every status page is drawn with. What comes from outside becomes text nodes and numbers only, so no name can
// become markup. A page of its own follows: WHO, headline, show; then asking.js, which calls them.

const EVERY_MS = 2000, PATIENCE_MS = 5000, MOST_POINTS = 150;
const SVG = "http://www.w3.org/2000/svg";
const history = [];
let before = null, heardAt = 0, key = "", timer = 0;

const $ = (id) => document.getElementById(id);

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {})) node.setAttribute(k, v);
  node.append(...children.filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
}

function draw(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [k, v] of Object.entries(attributes || {})) node.setAttribute(k, v);
  node.append(...children);
  return node;
}

// ---- numbers for people ----------------------------------------------------------------------------------------

function digits(value, most = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return "<0.001";
  const whole = Math.max(1, Math.ceil(Math.log10(Math.abs(value) + 1e-12)));
  const places = Math.max(0, Math.min(most - whole, 3));
  return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: places });
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${value < 1e-7 ? 0 : digits(value * 1e6)} µs`;
  return value < 1 ? `${digits(value * 1e3)} ms` : `${digits(value)} s`;
}

function span(value) {
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 129600 ? `${digits(value / 3600)} h` : `${digits(value / 86400)} days`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (value >= 1024 && i < units.length - 1) { value /= 1024; i += 1; }
  return `${digits(value)} ${units[i]}`;
}

const percent = (share) => (share === null || share === undefined || !Number.isFinite(share) ? "–" : `${digits(share * 100)} %`);
const count = (value) => value.toLocaleString("en");
const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;
const sum = (values) => values.reduce((a, b) => a + b, 0);

// ---- pictures ---------------------------------------------------------------------------------------------------

function picture(width, height, says, ...children) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": says }, ...children);
}

function columns(values, says, unit) {
  const width = 480, height = 130, top = 18, floor = height - 18, most = Math.max(...values, 1);
  const step = width / values.length;
  const bars = values.map((value, i) => {
    const tall = (value / most) * (floor - top);
    return draw("rect", { class: "full", x: i * step + 0.75, y: floor - tall, width: step - 1.5, height: tall, rx: 1 });
  });
  return picture(width, height, says, ...bars,
    draw("line", { class: "base", x1: 0, x2: width, y1: floor + 0.5, y2: floor + 0.5 }),
    draw("text", { x: 0, y: 11 }, `${digits(most)} ${unit}`),
    draw("text", { x: 0, y: height - 3 }, "a minute ago"),
    draw("text", { x: width, y: height - 3, "text-anchor": "end" }, "now"));
}

function lines(first, second, says) {
  const width = 480, height = 130, top = 18, floor = height - 18;
  const known = [...first, ...second].filter((v) => v !== null);
  const most = Math.max(...known, 1e-6);
  const path = (values) => {
    let d = "", pen = false;
    values.forEach((value, i) => {
      if (value === null) { pen = false; return; }
      const x = values.length < 2 ? width : (i / (values.length - 1)) * width;
      d += `${pen ? "L" : "M"}${x.toFixed(1)} ${(floor - (value / most) * (floor - top)).toFixed(1)}`;
      if (!pen && values.length < 2) d += "h0.1";
      pen = true;
    });
    return d;
  };
  return picture(width, height, says,
    draw("line", { class: "base", x1: 0, x2: width, y1: floor + 0.5, y2: floor + 0.5 }),
    draw("path", { class: "line second", d: path(second) }), draw("path", { class: "line", d: path(first) }),
    draw("text", { x: 0, y: 11 }, known.length ? seconds(most) : "nothing yet"),
    draw("text", { x: 0, y: height - 3 }, first.length > 1 ? `${span((first.length - 1) * EVERY_MS / 1000)} ago` : ""),
    draw("text", { x: width, y: height - 3, "text-anchor": "end" }, "now"));
}

function sparkline(values) {
  const width = 110, height = 20, most = Math.max(...values, 1), step = width / values.length;
  return picture(width, height, `answers in time each second, at most ${digits(most)}`,
    ...values.map((v, i) => draw("rect",
      { class: "full", x: i * step, y: height - (v / most) * height, width: step * 0.8, height: (v / most) * height })),
    draw("line", { class: "base", x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }));
}

function shares(rows, says) {
  const most = Math.max(...rows.map((r) => r.value), 1e-9), height = rows.length * 40;
  return picture(480, height, says, ...rows.flatMap((row, i) => [
    draw("text", { class: "strong", x: 0, y: i * 40 + 12 }, row.name),
    draw("text", { x: 480, y: i * 40 + 12, "text-anchor": "end" }, row.tells),
    draw("rect", { class: "pale", x: 0, y: i * 40 + 18, width: 480, height: 7, rx: 3.5, opacity: 0.35 }),
    draw("rect", { class: row.loud ? "loud" : "full", x: 0, y: i * 40 + 18, height: 7, rx: 3.5,
      width: Math.max((row.value / (row.of || most)) * 480, row.value ? 3 : 0) })]));
}

// ---- parts of the page ------------------------------------------------------------------------------------------

const figure = (says, ...children) => el("figure", {}, el("figcaption", {}, says), ...children);

function table(heads, rows) {
  const head = el("tr", {}, ...heads.map(([name, kind]) => el("th", kind ? { class: kind } : {}, name)));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell, i) => el("td", heads[i][1] ? { class: heads[i][1] } : {}, cell))));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

function pairs(entries, kind) {
  return el("dl", kind ? { class: kind } : {}, ...entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
