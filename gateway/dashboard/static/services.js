// Which of the services are shown: by their state, and by what is typed.
"use strict";
(() => {
  const list = document.querySelector(".list");
  const search = list.querySelector("[data-search]");
  const none = list.querySelector(".none-match");

  function filter() {
    const text = search.value.trim().toLowerCase();
    for (const row of list.querySelectorAll("tbody tr")) {
      row.classList.toggle("filtered", !row.textContent.toLowerCase().includes(text));
      if (!row.classList.length) row.removeAttribute("class");
    }
    const rows = [...list.querySelectorAll("tbody tr")];
    none.hidden = !rows.length || rows.some((row) => row.offsetParent !== null);
  }

  function choose(value) {
    list.dataset.show = value;
    sessionStorage.setItem("sluice-show", value);
    filter();
  }

  list.querySelector("[data-show-switch]").addEventListener("change", (event) => choose(event.target.value));
  search.addEventListener("input", filter);
  document.addEventListener("live:services", filter);

  const remembered = list.querySelector(`input[name=show][value="${sessionStorage.getItem("sluice-show") ?? "all"}"]`);
  if (remembered) {
    remembered.checked = true;
    choose(remembered.value);
  }
})();
