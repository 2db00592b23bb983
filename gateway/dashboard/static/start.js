// What is wrong with a value is said at its field as well.
"use strict";
(() => {
  const form = document.getElementById("start");

  function mark(name, text) {
    const wrong = form.querySelector(`[data-wrong-of="${CSS.escape(name)}"]`);
    const input = form.querySelector(`[name="${CSS.escape(name)}"]`);
    wrong.textContent = text;
    wrong.hidden = !text;
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    if (text) wrong.closest("details")?.setAttribute("open", "");
  }

  new MutationObserver(() => {
    const problem = document.querySelector("#script [data-wrong]");
    for (const wrong of form.querySelectorAll("[data-wrong-of]")) {
      const name = wrong.dataset.wrongOf;
      mark(name, problem && problem.dataset.wrongField === name ? problem.dataset.wrong : "");
    }
  }).observe(document.getElementById("script"), { childList: true });
})();
