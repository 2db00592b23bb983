// The charts: lines of what has gone through the gateway, columns of GPU hours. Each has the same numbers as a table.
"use strict";
(() => {
  const KINDS = {
    requests: [
      ["requests", "for models", "accent"],
      ["failed", "of these failed", "bad", [6, 4]],
      ["others", "others", "muted", [2, 3]],
    ],
    tokens: [
      ["generated", "written", "accent"],
      ["prompt", "read", "good", [6, 4]],
    ],
    latency: [
      ["latency50", "50 %", "accent"],
      ["latency95", "95 %", "wait", [6, 4]],
    ],
    first: [
      ["first50", "50 %", "accent"],
      ["first95", "95 %", "wait", [6, 4]],
    ],
  };
  const HEIGHT = 190;
  const page = document.querySelector(".charts[data-hours]");
  const hours = page.dataset.hours;
  const drawn = []; // [figure, plot, redraw]
  let known = null; // columns by name

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // A number for people: three digits that count, and units of time that fit.
  function number(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "s" && value < 1 && value > 0) return `${digits(value * 1000)} ms`;
    return `${digits(value)}${unit === "/s" || !unit ? "" : ` ${unit}`}`;
  }

  function digits(value) {
    if (!value) return "0";
    const most = value >= 100 ? 0 : value >= 10 ? 1 : 2;
    return value.toLocaleString("en", { maximumFractionDigits: most });
  }

  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

  function element(name, text) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function axes(unit, time) {
    const line = { stroke: colour("line"), width: 1 };
    const common = { stroke: colour("muted"), grid: line, ticks: line, font: "12px system-ui, sans-serif" };
    return [
      { ...common, grid: { show: false }, size: 34, ...time },
      { ...common, size: 66, values: (_, ticks) => ticks.map((value) => number(value, unit)) },
    ];
  }

  const cursor = { points: { size: 6 }, drag: { x: false, y: false }, y: false };

  function lines(figure, kind) {
    const unit = figure.dataset.unit;
    const list = figure.querySelector(".keys");
    const keys = KINDS[kind].map(([name, label, tone, dash]) => {
      const item = element("li");
      item.innerHTML = `<svg viewBox="0 0 22 8" aria-hidden="true"><path d="M0 4h22"/></svg>`;
      item.querySelector("path").setAttribute("stroke-dasharray", (dash ?? []).join(" "));
      item.append(element("span", label), element("strong", "–"));
      list.append(item);
      return { name, item };
    });

    function say(index) {
      for (const { name, item } of keys) {
        const value = index === null ? latest(name) : known[name][index];
        item.querySelector("strong").textContent = number(value, unit);
      }
    }

    const plot = new uPlot(
      {
        width: width(figure),
        height: HEIGHT,
        legend: { show: false },
        cursor,
        scales: { x: { range: since }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
        axes: axes(unit, { values: "{HH}:{mm}", space: 60 }),
        series: [{}, ...KINDS[kind].map(([, label, tone, dash], at) => ({
          label, dash, width: 1.7, stroke: colour(tone), points: { show: false }, spanGaps: false,
          fill: at === 0 ? `${colour(tone)}1f` : undefined,
        }))],
        hooks: { setCursor: [(one) => say(one.cursor.idx ?? null)] },
      },
      [known.at, ...KINDS[kind].map(([name]) => known[name])],
      figure.querySelector(".plot"),
    );
    keys.forEach(({ item }, at) => item.querySelector("path").setAttribute("stroke", colour(KINDS[kind][at][2])));
    plot.root.querySelector("canvas").setAttribute("aria-hidden", "true");

    function table() {
      const head = element("tr");
      for (const title of ["Time", ...KINDS[kind].map(([, label]) => label)]) {
        const cell = element("th", title);
        cell.scope = "col";
        head.append(cell);
      }
      const rows = known.at.map((at, index) => {
        const row = element("tr");
        const first = element("th", clock.format(at * 1000));
        first.scope = "row";
        row.append(first, ...KINDS[kind].map(([name]) => element("td", number(known[name][index], unit))));
        return row;
      });
      figure.querySelector("thead").replaceChildren(head);
      figure.querySelector("tbody").replaceChildren(...rows.reverse());
    }

    const details = figure.querySelector("details");
    details.addEventListener("toggle", () => details.open && table());

    function update() {
      plot.setData([known.at, ...KINDS[kind].map(([name]) => known[name])]);
      figure.querySelector(".nothing").hidden = KINDS[kind].some(([name]) => known[name].some((value) => value !== null));
      say(plot.cursor.idx ?? null);
      if (details.open) table();
    }
    update();
    return { plot, update };
  }

  // Where the time axis begins: at the first point that is known, as a gateway that has just been started knows few;
  // but what is shown is at least a sixth of the range.
  function since(_, low, high) {
    const first = known.at[known.requests.findIndex((value) => value !== null)] ?? low;
    return [Math.max(low, Math.min(first, high - (Number(hours) * 3600) / 6)), high];
  }

  // The newest point that is over and known; the last one is still being counted.
  function latest(name) {
    for (let index = known.at.length - 1; index >= Math.max(0, known.at.length - 3); index -= 1) {
      if (known[name][index] !== null) return known[name][index];
    }
    return null;
  }

  function columns(figure) {
    const rows = [...figure.querySelectorAll("tbody tr")].reverse();
    const at = rows.map((row) => Date.parse(`${row.children[0].textContent}T12:00:00Z`) / 1000);
    const values = rows.map((row) => Number(row.children[1].textContent));
    figure.querySelector(".nothing").hidden = values.some((value) => value > 0);
    const plot = new uPlot(
      {
        width: width(figure),
        height: HEIGHT,
        legend: { show: false },
        cursor,
        scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
        axes: axes(figure.dataset.unit, { values: (_, ticks) => ticks.map((tick) => day.format(tick * 1000)), space: 70 }),
        series: [{}, {
          width: 0, fill: colour("accent"), points: { show: false },
          paths: uPlot.paths.bars({ size: [0.7, 40] }),
        }],
      },
      [at, values],
      figure.querySelector(".plot"),
    );
    plot.root.querySelector("canvas").setAttribute("aria-hidden", "true");
    return { plot, update: () => {} };
  }

  const width = (figure) => Math.max(200, figure.querySelector(".plot").clientWidth);

  function draw() {
    for (const { plot } of drawn.splice(0)) plot.destroy();
    for (const figure of document.querySelectorAll("[data-chart]")) {
      figure.querySelector(".keys")?.replaceChildren();
      const kind = figure.dataset.chart;
      drawn.push({ figure, ...(kind === "days" ? columns(figure) : lines(figure, kind)) });
    }
  }

  // New points take the place of those of the same time; as many old ones go as new ones come.
  function merge(more) {
    for (const [index, at] of more.at.entries()) {
      let place = known.at.indexOf(at);
      if (place < 0) {
        if (at < known.at[known.at.length - 1]) continue;
        for (const column of Object.values(known)) {
          column.shift();
          column.push(null);
        }
        place = known.at.length - 1;
      }
      for (const name of Object.keys(known)) known[name][place] = more[name][index];
    }
  }

  async function load() {
    const answer = await fetch(`/ui/charts/data?hours=${hours}`);
    if (!answer.ok) throw new Error(`the gateway answers ${answer.status}`);
    const { length, ...found } = await answer.json();
    known = found;
    draw();
    document.addEventListener("live:charts", ({ detail }) => {
      const piece = detail.pieces[`charts-${hours}`];
      if (!piece) return;
      merge(JSON.parse(piece));
      for (const { update } of drawn) update();
    });
    let last = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === last) return;
      last = window.innerWidth;
      for (const { figure, plot } of drawn) plot.setSize({ width: width(figure), height: HEIGHT });
    });
    new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  load().catch((error) => {
    for (const figure of page.querySelectorAll("[data-chart]")) {
      const nothing = figure.querySelector(".nothing");
      nothing.hidden = false;
      nothing.textContent = `This cannot be shown: ${error.message}. Reload the page.`;
    }
  });
})();
