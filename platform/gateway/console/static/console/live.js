// The live feed: one row per ended request, newest first. Every text goes in as text, never as HTML.
"use strict";
(() => {
  const MOST_ROWS = 200;
  const FORBIDDEN = 4403;
  const root = document.getElementById("feed");
  const body = root.querySelector("tbody");
  const state = document.getElementById("feed-state");
  const empty = document.getElementById("feed-empty");
  const pause = document.getElementById("feed-pause");
  const tones = { completed: "good", failed: "bad", interrupted: "warn", unknown: "warn" };
  let waiting = [];
  let paused = false;
  let wait = 1000;

  const cell = (row, text, className) => {
    const td = row.insertCell();
    if (className) td.className = className;
    td.textContent = text;
    return td;
  };

  const show = (event) => {
    const row = body.insertRow(0);
    row.dataset.requestId = event.request_id;
    const at = new Date(event.at * 1000);
    cell(row, at.toLocaleTimeString([], { hour12: false }), "cf-number");
    cell(row, event.tenant);
    cell(row, event.key);
    const model = cell(row, "");
    const link = document.createElement("a");
    link.className = "cf-link";
    link.href = root.dataset.recordUrl.replace("00000000-0000-0000-0000-000000000000", event.request_id);
    link.textContent = event.model;
    model.append(link);
    const tag = document.createElement("span");
    tag.className = `cf-tag cf-tag-${tones[event.status] || "warn"}`;
    tag.textContent = event.status;
    cell(row, "").append(tag);
    cell(row, event.tokens, "cf-number");
    cell(row, `${event.ms} ms`, "cf-number");
    while (body.rows.length > MOST_ROWS) body.deleteRow(-1);
    empty.hidden = true;
  };

  const take = (events) => {
    if (paused) {
      waiting = waiting.concat(events).slice(-MOST_ROWS);
      pause.textContent = `Go on (${waiting.length} new)`;
      return;
    }
    for (const event of events) {
      if (!body.querySelector(`[data-request-id="${CSS.escape(event.request_id)}"]`)) show(event);
    }
  };

  const connect = () => {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}${root.dataset.socket}`);
    socket.onmessage = (message) => {
      state.textContent = "live";
      state.className = "cf-tag cf-tag-good";
      wait = 1000;
      take(JSON.parse(message.data).events);
    };
    socket.onclose = (event) => {
      state.className = "cf-tag cf-tag-bad";
      if (event.code === FORBIDDEN) {
        state.textContent = "not allowed: sign in again";
        return;
      }
      state.textContent = "connection lost, trying again";
      setTimeout(connect, wait);
      wait = Math.min(wait * 2, 30000);
    };
  };

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused) take(waiting.splice(0));
  });
  take(JSON.parse(document.getElementById("feed-first").textContent));
  connect();
})();
