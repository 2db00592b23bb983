// What every page has: times in words, the switch between light and dark, dialogs, buttons that copy.
"use strict";
(() => {
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  // For people who do not see what has changed.
  window.say = (text) => {
    document.getElementById("said").textContent = text;
  };

  function relative(seconds) {
    const [unit, size] = UNITS.find(([, one]) => Math.abs(seconds) >= one) ?? UNITS[3];
    const number = Math.trunc(Math.abs(seconds) / size);
    if (unit === "s" && number < 5) return "now";
    return seconds < 0 ? `${number} ${unit} ago` : `in ${number} ${unit}`;
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[datetime]:not([data-plain])")) {
      const text = relative((Date.parse(time.dateTime) - Date.now()) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
  }

  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.dataset.theme === "dark" || (root.dataset.theme === "auto" && system.matches);

  function labelThemes() {
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.textContent = dark() ? "Switch to light" : "Switch to dark";
    }
  }

  function switchTheme() {
    root.dataset.theme = dark() ? "light" : "dark";
    document.cookie = `sluice-theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
    labelThemes();
    document.dispatchEvent(new CustomEvent("theme"));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("themeSwitch" in button.dataset) switchTheme();
    if (button.dataset.dialog) document.getElementById(button.dataset.dialog).showModal();
    if ("close" in button.dataset) button.closest("dialog").close();
  });

  // A page that could not be made comes when it can be.
  document.addEventListener("live:link", () => {
    if (document.querySelector("[data-until-connected]") && document.getElementById("banner").hidden) location.reload();
  });

  system.addEventListener("change", labelThemes);
  document.addEventListener("live", tellTimes);
  setInterval(tellTimes, 1000);
  tellTimes();
  labelThemes();
})();
