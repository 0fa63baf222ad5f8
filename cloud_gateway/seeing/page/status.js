"use strict";
// Draws status.json. What comes from outside becomes text nodes and numbers only, so no name can become markup.

const EVERY_MS = 2000, PATIENCE_MS = 5000, MOST_POINTS = 150;
const SVG = "http://www.w3.org/2000/svg";
const GOOD = new Set(["AVAILABLE"]), BAD = new Set(["ERROR"]);
const MEANING = {
  BUSY: "the queue was full", DEADLINE: "it could not finish in time", UNKNOWN_SEGMENT: "a model that is not held",
  UNKNOWN_REFERENCE: "a frame no longer kept", BAD_REQUEST: "tensors that do not fit", TOO_LARGE: "over a size limit",
  DRAINING: "shutting down", CANCELLED: "withdrawn by the caller", INTERNAL: "the engine failed",
};
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
  if (value < 0.001) return `${digits(value * 1e6)} µs`;
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
const refusals = (figures) => sum(Object.values(figures.counters.refused));

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

function batches(sizes, bound) {
  const sorted = Object.entries(sizes).map(([k, v]) => [Number(k), v]).sort((a, b) => a[0] - b[0]);
  if (!sorted.length) return el("p", { class: "soft" }, "No engine run yet.");
  const top = Math.max(bound, sorted[sorted.length - 1][0]);
  const runs = sum(sorted.map((s) => s[1])), most = Math.max(...sorted.map((s) => s[1]));
  const width = 290, height = 92, floor = 62, step = width / top;
  const parts = [draw("line", { class: "base", x1: 0, x2: width, y1: floor + 0.5, y2: floor + 0.5 })];
  for (const [size, n] of sorted) {
    const tall = Math.max((n / most) * (floor - 16), 1.5), x = (size - 1) * step;
    parts.push(draw("rect", { class: "full", x: x + 1, y: floor - tall, width: Math.max(step - 2, 1.5), height: tall, rx: 1 }));
    if (n === most) parts.push(draw("text", { class: "strong", x: size === 1 ? 1 : size === top ? width : x + step / 2, y: floor - tall - 4,
      "text-anchor": size === 1 ? "start" : size === top ? "end" : "middle" }, percent(n / runs)));
  }
  const every = Math.max(1, Math.ceil(top / 8));
  for (let size = 1; size <= top; size += 1) {
    if (size === 1 || size === top || (size % every === 0 && top - size >= every)) {
      parts.push(draw("text", { x: (size - 0.5) * step, y: floor + 15, "text-anchor": "middle" }, size));
    }
  }
  parts.push(draw("text", { x: 0, y: height - 1 }, `rows of a run, of ${plural(runs, "run")}`));
  return picture(width, height, `batch sizes: ${sorted.map(([s, n]) => `${s} rows ${n} times`).join(", ")}`, ...parts);
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

function headline(seen) {
  if (seen.draining) return "Shutting down: finishing what it holds";
  if (!seen.ready) return "Not ready";
  const up = seen.models.filter((m) => m.state === "AVAILABLE").length;
  const ill = seen.models.filter((m) => m.state === "ERROR").length;
  const held = seen.models.length ? `: ${plural(up, "model version")} available` : "";
  return `Ready${held}${ill ? `, ${count(ill)} in error` : ""}`;
}

function showFigures(seen, rates) {
  const total = seen.total;
  const share = total.qps > 0 ? total.goodput / total.qps : null;
  const room = seen.pending.limit_requests;
  const box = (value, says, loud) => el("div", loud ? { class: "loud" } : {}, el("b", {}, value), el("span", {}, says));
  $("figures").replaceChildren(
    box(digits(total.qps), "answers a second"),
    box(percent(share), "of them in time", share !== null && share < 0.99),
    box(total.residence ? seconds(total.residence.p50_s) : "–", "median residence"),
    box(total.residence ? seconds(total.residence.p99_s) : "–", "99 % are faster than"),
    box(rates ? digits(rates.refused) : "–", "refusals a second", rates && rates.refused > 0),
    box(room ? `${count(seen.pending.requests)} / ${count(room)}` : count(seen.pending.requests), "requests held"));
}

function showMinute(seen) {
  const full = seen.total.in_time.slice(0, -1);
  $("minute").replaceChildren(
    figure("Answers in time, each second", columns(full, `answers in time each second, now ${full[full.length - 1]}`, "in a second")),
    figure("Residence: half are faster than the line, 99 % than the dashes",
      lines(history.map((h) => h.p50), history.map((h) => h.p99), "median and 99th percentile of residence")));
}

function showModels(seen) {
  if (!seen.models.length) return $("models").replaceChildren(el("p", { class: "soft" }, "No model is held."));
  const told = seen.models.filter((m) => m.reason);
  return $("models").replaceChildren(table(
    [["model", "long"], ["version", ""], ["state", ""], ["for", "n"], ["form", ""], ["digest", ""]],
    seen.models.map((m) => [m.name, m.version,
      el("span", { class: `state ${GOOD.has(m.state) ? "good" : BAD.has(m.state) ? "bad" : ""}` }, m.state),
      span(m.since_s), m.format || "–", el("code", {}, m.digest.slice(0, 12))])),
    ...told.map((m) => el("p", { class: `why${BAD.has(m.state) ? " warn" : ""}` }, `${m.name} ${m.version}: ${m.reason}`)));
}

function showLanes(seen) {
  if (!seen.lanes.length) return $("lanes").replaceChildren(el("p", { class: "soft" }, "No lane is open."));
  const name = (s) => `${s.model}/${s.version}/${s.placement}`;
  const figures = new Map(seen.scopes.map((s) => [name(s), s]));
  return $("lanes").replaceChildren(...seen.lanes.map((lane) => {
    const sizes = {};
    for (const scope of lane.scopes) {
      const counted = figures.get(name(scope));
      for (const [size, n] of Object.entries(counted ? counted.counters.batch_sizes : {})) sizes[size] = (sizes[size] || 0) + n;
    }
    const curve = Object.entries(lane.predicted_s).map(([b, s]) => [Number(b), s]).sort((a, b) => a[0] - b[0]);
    const ends = curve.length > 1 ? [curve[0], curve[curve.length - 1]] : curve;
    return el("div", { class: "card" }, el("h3", {}, lane.label), el("p", { class: "soft" }, lane.scopes.map(name).join(", ") || "no segment"),
      batches(sizes, lane.batch_bound),
      pairs([["batch bound", plural(lane.batch_bound, "row")],
        ["predicted", ends.length ? ends.map(([b, s]) => `${seconds(s)} for ${b}`).join(", ") : "–"],
        ["engines busy", `${lane.busy} of ${lane.instances}`],
        ["waiting", `${plural(lane.pending_requests, "request")}, ${bytes(lane.pending_nbytes)}`],
        ["wait of a new one", seconds(lane.wait_s)]]),
      el("p", { class: "soft small" }, lane.engine));
  }));
}

function showScopes(seen) {
  const used = seen.scopes.filter((s) => s.counters.offered || s.counters.answered || refusals(s));
  if (!used.length) return $("scopes").replaceChildren(el("p", { class: "soft" }, "No request yet."));
  const q = (found, name) => (found ? seconds(found[name]) : "–");
  return $("scopes").replaceChildren(table(
    [["model and placement", ""], ["last minute", ""], ["answers/s", "n"], ["in time", "n"], ["P50", "n"], ["P90", "n"],
      ["P99", "n"], ["queue P99", "n"], ["compute P50", "n"], ["predicted", "n"], ["answered", "n"], ["refused", "n"]],
    used.map((s) => [el("span", {}, `${s.model} ${s.version}`, el("br"), el("span", { class: "soft" }, s.placement)), sparkline(s.in_time.slice(0, -1)), digits(s.qps),
      s.qps > 0 ? percent(s.goodput / s.qps) : "–", q(s.residence, "p50_s"), q(s.residence, "p90_s"), q(s.residence, "p99_s"),
      q(s.queue, "p99_s"), q(s.compute, "p50_s"), percent(s.predicted_over_actual), count(s.counters.answered), count(refusals(s))])));
}

function showRefusals(seen) {
  const counters = seen.total.counters, refused = Object.entries(counters.refused).sort((a, b) => b[1] - a[1]);
  const all = sum(refused.map((r) => r[1]));
  if (!all) return $("refusals").replaceChildren(el("p", { class: "soft" }, `None of ${plural(counters.offered, "request")}.`));
  const reasons = refused.map(([code, n]) => ({ name: code, value: n, loud: code === "INTERNAL",
    tells: `${MEANING[code] ? `${MEANING[code]}: ` : ""}${count(n)}, ${percent(n / all)}` }));
  const bounds = seen.slack_bounds_s;
  const slack = counters.slack.map((n, i) => ({ value: n, name: i === 0 ? "none" : i < bounds.length ? `up to ${seconds(bounds[i])}` : "more",
    tells: count(n) })).filter((row) => row.value);
  const kept = counters.slack_budgeted ? `; on average ${percent(counters.slack_share / counters.slack_budgeted)} of the budget` : "";
  return $("refusals").replaceChildren(
    figure(`${plural(all, "refusal")} of ${plural(counters.offered, "request")}, by reason`, shares(reasons, "refusals by reason")),
    slack.length ? figure(`Time left to whoever was refused${kept}`, shares(slack, "slack of refusals")) : "");
}

function showRoom(seen) {
  const m = seen.machine, rows = [];
  const bar = (name, used, of, tells) => { if (used !== null && of) rows.push({ name, value: used, of, tells, loud: used / of > 0.9 }); };
  bar("Requests held", seen.pending.requests, seen.pending.limit_requests, `${count(seen.pending.requests)} of ${count(seen.pending.limit_requests)}`);
  bar("Payload held", seen.pending.nbytes, seen.pending.limit_nbytes, `${bytes(seen.pending.nbytes)} of ${bytes(seen.pending.limit_nbytes)}`);
  bar("Processors", m.cpu_utilisation, 1, percent(m.cpu_utilisation));
  bar("The machine's memory", m.memory_used_nbytes, m.memory_total_nbytes, `${bytes(m.memory_used_nbytes)} of ${bytes(m.memory_total_nbytes)}`);
  for (const gpu of m.gpus) {
    bar(`${gpu.uuid}, load`, gpu.utilisation, 1, percent(gpu.utilisation));
    bar(`${gpu.uuid}, memory`, gpu.memory_used_nbytes, gpu.memory_total_nbytes, `${bytes(gpu.memory_used_nbytes)} of ${bytes(gpu.memory_total_nbytes)}`);
  }
  $("room").replaceChildren(figure("What is used of what there is", shares(rows, "use of queue, processors and memory")),
    figure("Agents and this process", pairs([["agents greeted", count(seen.agents)],
      ["credit of each", `${plural(seen.credit.requests, "request")}, ${bytes(seen.credit.nbytes)}`],
      ["memory", bytes(m.process_memory_nbytes)], ["processor", m.process_cpu_share === null ? "–" : `${percent(m.process_cpu_share)} of one`],
      ["threads", m.process_threads === null ? "–" : count(m.process_threads)],
      ["open files", m.process_open_files === null ? "–" : count(m.process_open_files)],
      ["engines", [...new Set(seen.lanes.map((l) => l.engine))].join(", ") || "–"]])));
}

function showEvents(seen) {
  const events = Object.entries(seen.events).filter((e) => e[1]).sort();
  $("events").replaceChildren(events.length
    ? pairs(events.map(([name, n]) => [name.replaceAll("_", " "), count(n)]), "list") : el("p", { class: "soft" }, "Nothing else happened."));
}

// ---- the loop ---------------------------------------------------------------------------------------------------

function show(seen) {
  const rates = before && seen.uptime_s > before.uptime_s
    ? { refused: (refusals(seen.total) - refusals(before.total)) / (seen.uptime_s - before.uptime_s) } : null;
  const residence = seen.total.residence;
  if (before && seen.uptime_s < before.uptime_s) history.length = 0;  // it was started again
  history.push({ p50: residence ? residence.p50_s : null, p99: residence ? residence.p99_s : null });
  if (history.length > MOST_POINTS) history.shift();
  before = seen;
  if (document.getSelection().type === "Range") return;  // somebody is copying a number
  document.title = `${seen.ready && !seen.draining ? "Ready" : "Not ready"} – Isthmus gateway`;
  $("software").textContent = seen.software;
  $("uptime").textContent = `, up for ${span(seen.uptime_s)}`;
  if ($("state").textContent !== headline(seen)) $("state").textContent = headline(seen);
  $("reason").textContent = seen.reason;
  for (const part of [showMinute, showModels, showLanes, showScopes, showRefusals, showRoom, showEvents]) part(seen);
  showFigures(seen, rates);
  $("body").hidden = false;
}

function say(words, stale) {
  $("pulse").textContent = words;
  $("pulse").classList.toggle("warn", stale);
  document.documentElement.classList.toggle("stale", stale);
}

async function ask() {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    const answer = await fetch("status.json", { cache: "no-store", headers, signal: AbortSignal.timeout(PATIENCE_MS) });
    $("door").hidden = answer.status !== 401 && answer.status !== 403;
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    show(await answer.json());
    heardAt = Date.now();
    say("Live: asked every two seconds.", false);
  } catch (error) {
    const since = heardAt ? ` since ${new Date(heardAt).toLocaleTimeString()}; the numbers are from then` : "";
    say(`No answer${since} (${error.message}). Asking again.`, true);
    if (!heardAt) $("state").textContent = "The gateway does not answer";
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
$("open").addEventListener("click", () => { key = $("key").value.trim(); ask(); });
$("key").addEventListener("keydown", (event) => { if (event.key === "Enter") $("open").click(); });
ask();
