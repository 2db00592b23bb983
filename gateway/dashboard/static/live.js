// What is live on a page: pieces of HTML come in one stream of events, and each takes the place of the element with its
// id. All tabs of a browser share one connection, since a browser opens no more than six to one host: the tab that
// holds a lock listens and tells the others.
"use strict";
(() => {
  const AGAIN = 3000; // milliseconds until a stream is asked for anew that has been refused
  const channel = new BroadcastChannel("sluice-live");
  const mine = document.body.dataset.topics.split(/\s+/).filter(Boolean);
  const wanted = new Set(mine); // by all tabs, as far as the listening one knows
  const kept = new Map(); // topic → Map of id → piece: what the listening tab knows, for tabs that come later
  let source = null; // of the tab that listens
  let timer = 0;

  function element(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  }

  // Where the focus is within an element, as places among children.
  function placeOf(focused, top) {
    const path = [];
    for (let node = focused; node !== top; node = node.parentElement) {
      path.unshift([...node.parentElement.children].indexOf(node));
    }
    return path;
  }

  function swap(old, fresh) {
    fresh.classList.toggle("filtered", old.classList.contains("filtered"));
    if (!fresh.classList.length) fresh.removeAttribute("class");
    if (old.isEqualNode(fresh)) return;
    if (fresh.dataset.say && fresh.dataset.say !== old.dataset.say) window.say(fresh.dataset.say);
    const path = old.contains(document.activeElement) ? placeOf(document.activeElement, old) : null;
    old.replaceWith(fresh);
    window.htmx.process(fresh);
    if (!path) return;
    let target = fresh;
    for (const place of path) target = target.children[place] ?? target;
    target.focus({ preventScroll: true });
  }

  function insert(fresh, list, after) {
    if (after) after.after(fresh);
    else list.prepend(fresh);
    window.htmx.process(fresh);
    if (fresh.dataset.say) window.say(fresh.dataset.say);
  }

  function show({ topic, whole, pieces, gone }) {
    if (!mine.includes(topic)) return;
    const list = document.querySelector(`[data-live="${CSS.escape(topic)}"]`);
    let last = null; // pieces come in the order in which they are shown
    for (const [id, html] of Object.entries(pieces)) {
      if (!html.startsWith("<")) continue; // data, for a script of the page
      const old = document.getElementById(id);
      const fresh = element(html);
      if (old) swap(old, fresh);
      else if (list && fresh.dataset.elsewhere === undefined) insert(fresh, list, last);
      const now = document.getElementById(id);
      if (list && now && now.parentElement === list) last = now;
    }
    for (const id of gone) document.getElementById(id)?.remove();
    if (whole && list) [...list.children].filter((child) => !(child.id in pieces)).forEach((child) => child.remove());
    document.dispatchEvent(new CustomEvent("live", { detail: { topic } }));
    document.dispatchEvent(new CustomEvent(`live:${topic}`, { detail: { whole, pieces, gone } }));
  }

  function keep({ topic, whole, pieces, gone }) {
    if (whole || !kept.has(topic)) kept.set(topic, new Map());
    for (const id of gone) kept.get(topic).delete(id);
    for (const [id, piece] of Object.entries(pieces)) kept.get(topic).set(id, piece);
  }

  function connected(yes) {
    document.getElementById("offline").hidden = yes;
    document.documentElement.dataset.live = yes ? "yes" : "no";
  }

  function tell(said) {
    channel.postMessage(said);
    if (said.said) show(said.said);
    if (said.connected !== undefined) connected(said.connected);
  }

  function listen() {
    clearTimeout(timer);
    source?.close();
    source = new EventSource(`/ui/events?topics=${encodeURIComponent([...wanted].sort().join(","))}`);
    source.onopen = () => tell({ connected: true });
    source.onmessage = (event) => {
      const said = JSON.parse(event.data);
      keep(said);
      tell({ said });
    };
    source.onerror = () => {
      tell({ connected: false });
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(listen, AGAIN);
    };
  }

  // A tab has come: it gets what is known of what it shows, and further topics are listened to.
  function welcome(topics) {
    const more = topics.filter((topic) => !wanted.has(topic));
    more.forEach((topic) => wanted.add(topic));
    if (more.length) listen();
    for (const topic of topics.filter((one) => kept.has(one))) {
      const pieces = Object.fromEntries(kept.get(topic));
      channel.postMessage({ said: { topic, whole: true, pieces, gone: [] } });
    }
    channel.postMessage({ connected: source.readyState === EventSource.OPEN });
  }

  channel.onmessage = ({ data }) => {
    if (source) {
      if (data.join) welcome(data.join);
      return;
    }
    if (data.said) show(data.said);
    if (data.connected !== undefined) connected(data.connected);
    if (data.who) channel.postMessage({ join: mine });
  };

  if (!navigator.locks) {
    listen(); // not a secure context: each tab has a connection of its own
    return;
  }
  channel.postMessage({ join: mine });
  navigator.locks.request("sluice-live", () => {
    listen();
    channel.postMessage({ who: true });
    return new Promise(() => {}); // held until this tab is closed
  });
})();
