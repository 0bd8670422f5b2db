"use strict";
// The status page: reads /events with the operator's key and draws tables. What comes is put in as text, never as HTML.
const $ = (id) => document.getElementById(id);
const KEPT = "fairlead-admin-key";
let key = sessionStorage.getItem(KEPT) || "";
let stream = null;

const seconds = (s) => s == null ? "-" : s < 1 ? `${Math.round(s * 1000)} ms` : s < 120 ? `${s.toFixed(1)} s` : `${Math.round(s / 60)} min`;
const percent = (share) => share == null ? "-" : `${Math.round(100 * share)}%`;
const count = (number) => number == null ? "-" : number.toLocaleString("en");

async function ask(path, method = "GET") {
  const answer = await fetch(path, { method, headers: { authorization: `Bearer ${key}` }, cache: "no-store" });
  if (answer.status === 401 || answer.status === 429) { login((await answer.json()).error.message); throw new Error("refused"); }
  return answer;
}

function cell(row, content, kind) {
  const made = row.insertCell();
  if (content instanceof Node) made.append(content); else made.textContent = content ?? "-";
  if (kind) made.className = kind;
}

function draw(table, heads, rows, fill) {
  const body = document.createElement("tbody");
  const head = body.insertRow();
  for (const name of heads) { // one that begins with > stands over numbers
    const th = document.createElement("th");
    th.textContent = name.replace(">", "");
    if (name.startsWith(">")) th.className = "number";
    head.append(th);
  }
  for (const one of rows) fill(body.insertRow(), one);
  if (!rows.length) { const row = body.insertRow(); cell(row, "none", "dim"); row.cells[0].colSpan = heads.length; }
  $(table).replaceChildren(body);
}

function link(id) {
  const made = document.createElement("a");
  made.className = "id"; made.textContent = id; made.tabIndex = 0; made.setAttribute("role", "button");
  made.onclick = () => explain(id);
  made.onkeydown = (event) => { if (event.key === "Enter") explain(id); };
  return made;
}

function drainButton(worker) {
  const made = document.createElement("button");
  const draining = worker.state === "draining";
  made.type = "button"; made.textContent = draining ? "undrain" : "drain";
  made.onclick = async () => {
    const what = draining ? `Use ${worker.url} again?` : `Drain ${worker.url}? It finishes what it has and gets nothing new.`;
    if (!confirm(what)) return;
    const answer = await ask(`workers/${made.textContent}?url=${encodeURIComponent(worker.url)}`, "POST");
    if (!answer.ok) alert((await answer.json()).error.message);
  };
  return made;
}

const STATE = { up: "good", suspect: "some", draining: "some", starting: "some", down: "bad" };

function show(told) {
  $("summary").textContent = `${told.open - told.queued} running, ${told.queued} waiting, ${told.workers.length} workers; ${new Date(told.time * 1000).toLocaleTimeString()}`;
  // A table is not redrawn under the pointer: a click would miss its button.
  if (!$("workers").matches(":hover")) draw("workers", ["worker", "state", ">batch", ">prefill owed", ">KV", ">hits", ">tokens/s", ""], told.workers, (row, one) => {
    cell(row, one.worker);
    cell(row, one.why ? `${one.state}: ${one.why}` : one.state, STATE[one.state]);
    cell(row, one.slots ? `${one.batch} of ${one.slots}` : one.batch, "number");
    cell(row, count(one.prefill_owed_tokens), "number");
    cell(row, one.kv_share == null ? count(one.kv_reserved_tokens) : percent(one.kv_share), "number");
    cell(row, percent(one.hit_share), "number");
    cell(row, count(one.tokens_per_s), "number");
    cell(row, drainButton(one));
  });
  draw("clients", ["client", ">waiting", ">oldest", ">running", ">share", ">tokens/min", ">owed", "nearest limit"], told.clients, (row, one) => {
    cell(row, one.client);
    cell(row, one.waiting, "number");
    cell(row, seconds(one.oldest_wait_s), "number");
    cell(row, one.running, "number");
    cell(row, percent(one.share), "number");
    cell(row, count(one.tokens_last_minute), "number");
    cell(row, one.deficit == null ? "-" : count(one.deficit), "number");
    const limit = one.nearest_limit;
    cell(row, limit ? `${count(limit.remaining)} of ${count(limit.limit)} ${limit.of}` : "-");
  });
  if (!$("waiting").matches(":hover")) draw("waiting", ["request", "client", "model", ">tokens", ">since"], told.waiting, (row, one) => {
    cell(row, link(one.request_id)); cell(row, one.client); cell(row, one.model);
    cell(row, count(one.input_tokens), "number"); cell(row, seconds(one.age_s), "number");
  });
  if (!$("decisions").matches(":hover")) draw("decisions", ["request", "client", "worker", "reason", ">expected", ">found", ">waited", ">took", "end"], told.decisions, (row, one) => {
    cell(row, link(one.request_id)); cell(row, one.client);
    cell(row, one.prefill_worker ? `${one.prefill_worker} then ${one.worker}` : one.worker);
    cell(row, one.reason); cell(row, count(one.matched_tokens), "number"); cell(row, count(one.cached_tokens), "number");
    cell(row, seconds(one.waited_s), "number"); cell(row, seconds(one.age_s), "number");
    cell(row, one.state, one.state === "completed" ? "good" : one.state === "cancelled" ? "dim" : "bad");
  });
}

function worded(request) {
  const lines = [`${request.request_id} of ${request.client} for ${request.model}: ${request.state}`,
    `came ${request.arrived}, ${request.input_tokens} prompt tokens, ${seconds(request.age_s)} in all, ${seconds(request.waited_s)} of it waiting`];
  for (const wait of request.waits) lines.push(`  waited ${seconds(wait.for_s)}: ${wait.for}${wait.worker ? ` for ${wait.worker}` : ""}`);
  const workers = (rows, nothing) => { for (const one of rows) lines.push(`    ${one.worker}  cost ${one.cost == null ? "-" : one.cost.toPrecision(4)}  matched ${one.matched_tokens ?? "-"}  ${one.why_not ?? nothing}${one.state_why ? ` (${one.state_why})` : ""}`); };
  for (const one of request.attempts) {
    lines.push(`attempt ${one.attempt} at ${seconds(one.at_s)} on ${one.worker}: ${one.reason}, ${one.matched_tokens} tokens expected in its cache`);
    workers(one.workers, "taken");
    if (one.failed) lines.push(`  failed at ${seconds(one.failed.at_s)}: ${one.failed.reason}: ${one.failed.why}`);
  }
  if (request.found) lines.push(`cached prefix: expected ${request.found.matched_tokens}, found ${request.found.cached_tokens ?? "not said"} of ${request.found.input_tokens} prompt tokens`);
  if (request.now) { lines.push(`now it waits for ${request.now.waits_for}; ${request.now.arrived_before} came before it`); workers(request.now.workers, "has room"); }
  if (request.ended) lines.push(`ended after ${seconds(request.ended.at_s)}: ${request.ended.outcome}${request.ended.why ? `: ${request.ended.why}` : ""}`);
  return lines.join("\n");
}

async function explain(id) {
  const answer = await ask(`requests/${encodeURIComponent(id)}`);
  const told = await answer.json();
  $("why").textContent = answer.ok ? told.requests.map(worded).join("\n\n") : told.error.message;
  $("answer").hidden = false;
  $("answer").scrollIntoView({ block: "nearest" });
}

function login(message) {
  if (stream) stream.abort();
  stream = null;
  $("page").hidden = true; $("login").hidden = false; $("refused").textContent = message || "";
  $("summary").textContent = "not connected";
}

async function follow() {
  const mine = stream = new AbortController();
  while (stream === mine) {
    try {
      const answer = await fetch("events", { headers: { authorization: `Bearer ${key}` }, signal: mine.signal, cache: "no-store" });
      if (answer.status === 401) { sessionStorage.removeItem(KEPT); login((await answer.json()).error.message); return; }
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      sessionStorage.setItem(KEPT, key);
      $("login").hidden = true; $("page").hidden = false;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const events = (held + value).split("\n\n");
        held = events.pop();
        if (events.length) show(JSON.parse(events.at(-1).slice("data: ".length)));
      }
    } catch (error) {
      if (stream === mine) $("summary").textContent = `not connected: ${error.message}; trying again`;
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

$("login").onsubmit = (event) => { event.preventDefault(); key = $("key").value.trim(); $("key").value = ""; follow(); };
$("find").onsubmit = (event) => { event.preventDefault(); const id = $("request").value.trim(); if (id) explain(id); };
$("close").onclick = () => { $("answer").hidden = true; };
if (key) follow(); else login();
