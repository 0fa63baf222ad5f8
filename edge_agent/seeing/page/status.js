// The agent's page: what status.json says, states in words first.

const WHO = "agent";
const MEANING = {
  DEADLINE: "the budget ran out", NO_PLACEMENT: "nothing could do it", BAD_REQUEST: "tensors that do not fit",
  BUSY: "too many were waiting", CLOSED: "the agent was shut down",
};
const CAUSES = {
  link: "no link to a gateway", silence: "the gateway did not answer", no_time: "the way would have taken too long",
  not_held: "the gateway does not hold the part", device: "a head failed here", gateway_busy: "the gateway was full",
  gateway_draining: "the gateway was going away", gateway_deadline: "the gateway could not be in time",
  gateway_internal: "the gateway's engine failed", gateway_forbidden: "the gateway refused our key",
  gateway_unknown_segment: "the gateway does not hold the part", gateway_unknown_reference: "the gateway no longer kept a frame",
  gateway_bad_request: "the gateway could not take it", gateway_too_large: "too large for the gateway",
  gateway_cancelled: "the gateway gave it up", other: "another cause",
};
const STAGES = [["edge_s", "work on the device"], ["encode_s", "encoding"], ["network_s", "on the link"],
  ["queue_s", "the gateway's queue"], ["decode_s", "decoding there"], ["compute_s", "work at the gateway"],
  ["waited_s", "waiting for a turn"]];
const refusals = (figures) => sum(Object.values(figures.counters.refused));
const bitrate = (value) => value === null || value === undefined ? "–"
  : value >= 125e3 ? `${digits(value * 8 / 1e6)} Mbit/s` : `${digits(value * 8 / 1e3)} kbit/s`;
const named = (placement) => placement.kind === "edge-only" ? "on the device alone"
  : placement.kind === "full-cloud" ? "at the gateway" : "on the device and at the gateway";

// ---- in words ---------------------------------------------------------------------------------------------------

function headline(seen) {
  if (!seen.ready) return "Not ready";
  if (!seen.now.placement) return "Ready: no request yet";
  return `Requests run ${named(seen.now)}`;
}

function showWords(seen) {
  const now = seen.now, rows = [];
  const row = (name, words, warn) => rows.push([name, el("span", warn ? { class: "warn" } : {}, words)]);
  const plan = seen.placements.find((p) => p.id === now.placement);
  row("placement", now.placement ? `${now.placement}${plan && plan.predicted_s ? `, predicted ${seconds(plan.predicted_s)}` : ""}` : "no request was placed yet");
  if (now.flips.length) row("another", now.flips.join("; "));
  if (now.degraded) row("degraded", now.degraded, true);
  const up = seen.gateways.filter((g) => g.ready);
  if (!seen.bundle.digest) row("bundle", "none serves yet");
  else if (!seen.gateways.length) row("link", "none: no gateway is named");
  else if (!up.length) row("link", seen.gateways[0].reason || seen.gateways[0].state, true);
  else {
    const best = up.find((g) => g.in_use) || up[0];
    const known = best.uplink_bytes_per_s === null ? "not measured yet"
      : `${bitrate(best.uplink_bytes_per_s)} up, ${seconds(best.rtt_s)} there and back`;
    row("link", `${best.name}: ${known}`);
    if (up.length < seen.gateways.length) row("gateways", `${count(up.length)} of ${count(seen.gateways.length)} can be used`, true);
    else if (up.length > 1) row("gateways", `all ${count(up.length)} can be used`);
  }
  const board = seen.board;
  if (board) {
    const said = [board.model, board.power_mode ? `power mode ${board.power_mode}` : null,
      board.celsius === null ? null : `${digits(board.celsius)} °C${board.limit_celsius === null ? "" : ` of ${digits(board.limit_celsius)} °C`}`,
      board.watts === null ? null : `${digits(board.watts)} W`].filter((x) => x);
    if (said.length) row("device", said.join(", "));
    if (board.throttled) row("throttled", board.throttled, true);
  }
  if (seen.edge_factor !== null && seen.edge_factor > 1.25) row("speed", `${digits(seen.edge_factor, 2)} times slower than planned`, true);
  const bundle = seen.bundle;
  if (bundle.digest) {
    const digest = bundle.digest.slice(0, 12), version = bundle.version === digest ? "" : bundle.version;
    row("bundle", [`${bundle.model} ${version}`.trim(), digest, bundle.state,
      bundle.signed_by ? `signed by ${bundle.signed_by}` : "not signed"].filter((x) => x).join(", "));
    if (bundle.coming) row("update", bundle.coming);
  }
  const store = seen.store;
  if (store) row("store", store.trouble ? `takes nothing: ${store.trouble}` : store.waiting || store.answered
    ? `${plural(store.waiting, "request")} waiting${store.oldest_s ? `, the oldest for ${span(store.oldest_s)}` : ""}, ` +
      `${plural(store.answered, "answer")} to be fetched, ${bytes(store.nbytes)}` : "nothing is waiting");
  $("words").replaceChildren(pairs(rows, "list"));
}

// ---- numbers and pictures ---------------------------------------------------------------------------------------

function showFigures(seen, rates) {
  const total = seen.total, share = total.qps > 0 ? total.goodput / total.qps : null;
  const box = (value, says, loud) => el("div", loud ? { class: "loud" } : {}, el("b", {}, value), el("span", {}, says));
  const degraded = rates && rates.answered > 0 ? rates.degraded / rates.answered : total.qps > 0 ? 0 : null;
  $("figures").replaceChildren(
    box(digits(total.qps), "answers a second"),
    box(percent(share), "of them in time", share !== null && share < 0.99),
    box(total.total ? seconds(total.total.p50_s) : "–", "median, submit to answer"),
    box(total.total ? seconds(total.total.p99_s) : "–", "99 % are faster than"),
    box(percent(degraded), "degraded just now", degraded > 0),
    box(count(seen.pending), "requests on their way"));
}

function showMinute(seen) {
  const full = seen.total.in_time.slice(0, -1);
  $("minute").replaceChildren(
    figure("Answers in time, each second", columns(full, `answers in time each second, now ${full[full.length - 1]}`, "in a second")),
    figure("Submit to answer: half are faster than the line, 99 % than the dashes",
      lines(history.map((h) => h.p50), history.map((h) => h.p99), "median and 99th percentile from submission to answer")));
}

function showPlan(seen) {
  if (!seen.placements.length) return $("plan").replaceChildren(el("p", { class: "soft" }, seen.bundle.digest ? "The bundle holds no placement." : "No bundle serves."));
  const most = Math.max(...seen.placements.map((p) => p.predicted_s || 0), 1e-9);
  const bar = (p) => picture(110, 14, `predicted ${seconds(p.predicted_s)}`,
    draw("rect", { class: p.unavailable ? "pale" : "full", x: 0, y: 6, height: 7, rx: 3.5, width: p.predicted_s ? Math.max(p.predicted_s / most * 110, 2) : 0 }));
  return $("plan").replaceChildren(table(
    [["placement", ""], ["now", "long"], ["predicted", "n"], ["", ""], ["where", ""]],
    seen.placements.map((p) => [p.id,
      p.id === seen.now.placement ? el("span", { class: "state good" }, "IN USE")
        : p.unavailable ? el("span", { class: "warn" }, p.unavailable) : el("span", { class: "soft" }, "can be used"),
      seconds(p.predicted_s), bar(p), named(p)])));
}

function showGateways(seen) {
  if (!seen.gateways.length) return $("gateways").replaceChildren(el("p", { class: "soft" }, "None is named: everything runs on the device."));
  const told = seen.gateways.filter((g) => g.reason);
  return $("gateways").replaceChildren(table(
    [["gateway", "long"], ["state", ""], ["up", "n"], ["there and back", "n"], ["its queue", "n"], ["expected wait", "n"], ["out there", "n"]],
    seen.gateways.map((g) => [g.name, el("span", { class: `state ${g.ready ? "good" : "bad"}` }, g.state.toUpperCase()),
      ...(g.ready ? [bitrate(g.uplink_bytes_per_s), seconds(g.rtt_s), seconds(g.queue_s), seconds(g.wait_s)] : ["–", "–", "–", "–"]),
      g.in_flight ? `${count(g.in_flight)}, ${bytes(g.in_flight_nbytes)}` : "–"])),
    ...told.map((g) => el("p", { class: "why warn" }, `${g.name}: ${g.reason}`)));
}

function showScopes(seen) {
  const used = seen.scopes.filter((s) => s.counters.answered);
  if (!used.length) return $("scopes").replaceChildren(el("p", { class: "soft" }, "None yet."));
  const q = (found, name) => (found ? seconds(found[name]) : "–");
  return $("scopes").replaceChildren(table(
    [["placement", "long"], ["last minute", ""], ["answers/s", "n"], ["in time", "n"], ["P50", "n"], ["P90", "n"], ["P99", "n"],
      ["device P50", "n"], ["link P50", "n"], ["predicted", "n"], ["answered", "n"], ["degraded", "n"]],
    used.map((s) => [el("span", {}, s.placement, s.precision && s.precision !== "none" ? `, ${s.precision}` : "", el("br"),
        el("span", { class: "soft" }, `${s.model} ${s.version}${s.gateway ? ` at ${s.gateway.replace(/^tcp:..(?=.)/, "")}` : ""}`)),
      sparkline(s.in_time.slice(0, -1)), digits(s.qps), s.qps > 0 ? percent(s.goodput / s.qps) : "–",
      q(s.total, "p50_s"), q(s.total, "p90_s"), q(s.total, "p99_s"), q(s.edge, "p50_s"), q(s.network, "p50_s"),
      percent(s.predicted_over_actual), count(s.counters.answered), count(s.counters.degraded)])));
}

function showStages(seen) {
  const c = seen.total.counters;
  if (!c.answered) return $("stages").replaceChildren(el("p", { class: "soft" }, "No answer yet."));
  const rows = STAGES.filter(([name]) => c[name] > 0).map(([name, says]) => ({ name: says, value: c[name],
    of: c.total_s, tells: `${seconds(c[name] / c.answered)}, ${percent(c[name] / c.total_s)}` }));
  const error = seen.total.prediction_error;
  return $("stages").replaceChildren(
    figure("Of an average answer", shares(rows, "stages of an average answer")),
    figure("Answers so far", pairs([["answered", count(c.answered)], ["late", count(c.late)],
      ["average of the budget used", c.budgeted ? percent(c.budget_used / c.budgeted) : "–"],
      ["prediction off by, last minute", error === null ? "–" : percent(error)],
      ["sent, received", `${bytes(c.up_nbytes)}, ${bytes(c.down_nbytes)}`],
      ["attempts beyond the first", count(c.repeated)], ["both sides at once", count(c.hedged)]])));
}

function showTrouble(seen) {
  const c = seen.total.counters, parts = [];
  const sorted = (counts) => Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const refused = refusals(seen.total), all = refused + c.answered;
  if (c.degraded) parts.push(figure(`${plural(c.degraded, "degraded answer")} of ${count(c.answered)}, by cause`,
    shares(sorted(c.causes).map(([cause, n]) => ({ name: CAUSES[cause] || cause.replaceAll("_", " "), value: n, tells: count(n) })), "degraded answers by cause")));
  if (refused) {
    parts.push(figure(`${plural(refused, "refusal")} of ${plural(all, "request")}, by reason`,
      shares(sorted(c.refused).map(([code, n]) => ({ name: code, value: n, loud: true,
        tells: `${MEANING[code] ? `${MEANING[code]}: ` : ""}${count(n)}` })), "refusals by reason")));
    const bounds = seen.slack_bounds_s;
    const slack = c.slack.map((n, i) => ({ value: n, name: i === 0 ? "none" : i < bounds.length ? `up to ${seconds(bounds[i])}` : "more", tells: count(n) }))
      .filter((r) => r.value);
    if (slack.length) parts.push(figure(`Time left to whoever was refused; on average ${percent(c.slack_share / c.slack_budgeted)} of the budget`,
      shares(slack, "slack of refusals")));
  }
  $("trouble").replaceChildren(...(parts.length ? parts
    : [el("p", { class: "soft" }, c.answered ? `Nothing: all of ${plural(all, "request")} went as planned.` : "Nothing yet.")]));
}

function showRoom(seen) {
  const m = seen.machine, board = seen.board, rows = [];
  const bar = (name, used, of, tells) => {
    if (used !== null && used !== undefined && of) rows.push({ name, value: used, of, tells, loud: used / of > 0.9 });
  };
  if (board) {
    bar(`Temperature, ${board.heat}`, board.celsius, board.limit_celsius, `${digits(board.celsius)} of ${digits(board.limit_celsius)} °C`);
    bar("The board's GPU", board.gpu_load, 1, percent(board.gpu_load));
  }
  bar("Processors", m.cpu_utilisation, 1, percent(m.cpu_utilisation));
  bar("The machine's memory", m.memory_used_nbytes, m.memory_total_nbytes, `${bytes(m.memory_used_nbytes)} of ${bytes(m.memory_total_nbytes)}`);
  if (seen.store && seen.store.limit_nbytes) {
    bar("Room of the store", seen.store.nbytes, seen.store.limit_nbytes, `${bytes(seen.store.nbytes)} of ${bytes(seen.store.limit_nbytes)}`);
  }
  for (const gpu of m.gpus) {
    bar(`${gpu.uuid}, load`, gpu.utilisation, 1, percent(gpu.utilisation));
    bar(`${gpu.uuid}, memory`, gpu.memory_used_nbytes, gpu.memory_total_nbytes, `${bytes(gpu.memory_used_nbytes)} of ${bytes(gpu.memory_total_nbytes)}`);
  }
  const engines = [...new Set(seen.scopes.map((s) => s.engine).filter((e) => e))];
  $("room").replaceChildren(rows.length ? figure("What is used of what there is", shares(rows, "use of board, processors and memory")) : "",
    figure("This process", pairs([["memory", bytes(m.process_memory_nbytes)],
      ["processor", m.process_cpu_share === null ? "–" : `${percent(m.process_cpu_share)} of one`],
      ["threads", m.process_threads === null ? "–" : count(m.process_threads)],
      ["open files", m.process_open_files === null ? "–" : count(m.process_open_files)],
      ["speed against the plan", seen.edge_factor === null ? "–" : `${digits(seen.edge_factor, 2)} times the planned time`],
      ["engines", engines.join(", ") || "–"]])));
}

function showEvents(seen) {
  const events = Object.entries(seen.events).filter((e) => e[1]).sort();
  $("events").replaceChildren(events.length
    ? pairs(events.map(([name, n]) => [name.replaceAll("_", " "), count(n)]), "list") : el("p", { class: "soft" }, "Nothing else happened."));
}

// ---- everything at once -----------------------------------------------------------------------------------------

function show(seen) {
  const mine = seen.total.counters, then = before ? before.total.counters : null;
  const rates = then && seen.uptime_s > before.uptime_s
    ? { answered: mine.answered - then.answered, degraded: mine.degraded - then.degraded } : null;
  const total = seen.total.total;
  if (before && seen.uptime_s < before.uptime_s) history.length = 0;  // it was started again
  history.push({ p50: total ? total.p50_s : null, p99: total ? total.p99_s : null });
  if (history.length > MOST_POINTS) history.shift();
  before = seen;
  if (document.getSelection().type === "Range") return;  // somebody is copying a number
  document.title = `${seen.ready ? seen.now.placement || "Ready" : "Not ready"} – Isthmus agent`;
  $("software").textContent = seen.software;
  $("uptime").textContent = `, up for ${span(seen.uptime_s)}`;
  if ($("state").textContent !== headline(seen)) $("state").textContent = headline(seen);
  $("reason").textContent = seen.ready ? seen.now.why : seen.reason.replace(/^./, (first) => first.toUpperCase());
  for (const part of [showWords, showMinute, showPlan, showGateways, showScopes, showStages, showTrouble, showRoom, showEvents]) part(seen);
  showFigures(seen, rates);
  $("body").hidden = false;
}
