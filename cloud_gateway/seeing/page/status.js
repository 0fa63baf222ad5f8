// The gateway's page: what status.json says, in words and pictures.

const WHO = "gateway";
const GOOD = new Set(["AVAILABLE"]), BAD = new Set(["ERROR"]);
const MEANING = {
  BUSY: "the queue was full", DEADLINE: "it could not finish in time", UNKNOWN_SEGMENT: "a model that is not held",
  UNKNOWN_REFERENCE: "a frame no longer kept", BAD_REQUEST: "tensors that do not fit", TOO_LARGE: "over a size limit",
  DRAINING: "shutting down", CANCELLED: "withdrawn by the caller", INTERNAL: "the engine failed",
};
const refusals = (figures) => sum(Object.values(figures.counters.refused));

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

// ---- parts of the page ------------------------------------------------------------------------------------------

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
      el("p", { class: "soft small" }, lane.engine),
      ...lane.engines.filter((e) => !e.serves).map((e) => el("p", { class: "soft small" },
        `${e.kind}${e.precision ? ` in ${e.precision}` : ""}: ${e.state === "ready" ? "stands by" : e.state}${e.failures ? `, failed ${plural(e.failures, "time")}` : ""}${e.reason ? ` (${e.reason})` : ""}`)));
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

// ---- everything at once ------------------------------------------------------------------------------------------

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
