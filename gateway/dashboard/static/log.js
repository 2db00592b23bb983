// The log of a service as it grows: the API's own stream, as text. Only while the tab is seen, because a browser opens no
// more than six connections to one host.
"use strict";
(() => {
  const LINES = 1000; // from the end, at first
  const MOST = 5000; // that are kept
  const AGAIN = 3000; // milliseconds
  const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|\r(?!\n)/g;
  const log = document.getElementById("log");
  const state = document.getElementById("log-state");
  const follow = document.querySelector("[data-log-follow]");
  let controller = null;

  function trim() {
    while (log.childNodes.length > MOST) log.firstChild.remove();
  }

  // Lines are nodes of their own, so that the first ones can be let go.
  function append(lines) {
    log.append(...lines.map((line) => document.createTextNode(`${line.replace(ESCAPES, "")}\n`)));
    trim();
    if (follow.checked) log.scrollTop = log.scrollHeight;
  }

  async function read(signal) {
    const response = await fetch(`${log.dataset.log}?follow=true&tail=${LINES}`, { signal });
    if (!response.ok) throw new Error(`the log cannot be read now (${response.status})`);
    log.replaceChildren();
    state.textContent = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      const lines = (rest + (value ?? "")).split("\n");
      rest = done ? "" : lines.pop();
      append(done && lines.at(-1) === "" ? lines.slice(0, -1) : lines);
      if (done) break;
    }
    state.textContent = "This is all; the job has ended.";
  }

  async function run() {
    controller?.abort();
    controller = new AbortController();
    const { signal } = controller;
    try {
      await read(signal);
    } catch (error) {
      if (signal.aborted) return;
      state.textContent = `${error.message}; it is tried again.`;
      setTimeout(() => !signal.aborted && run(), AGAIN);
    }
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? controller?.abort() : run()));
  document.querySelector("[data-log-wrap]").addEventListener("change", (event) => {
    log.classList.toggle("wrapped", event.target.checked);
  });
  follow.addEventListener("change", () => follow.checked && (log.scrollTop = log.scrollHeight));
  log.addEventListener("scroll", () => {
    follow.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  });
  if (!document.hidden) run();
})();
