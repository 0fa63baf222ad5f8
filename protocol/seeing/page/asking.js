// Asks status.json every two seconds while somebody looks, and says so when nothing comes.

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
    if (!heardAt) $("state").textContent = `The ${WHO} does not answer`;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
$("open").addEventListener("click", () => { key = $("key").value.trim(); ask(); });
$("key").addEventListener("keydown", (event) => { if (event.key === "Enter") $("open").click(); });
ask();
