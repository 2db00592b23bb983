// A question before something that cannot be taken back.

import { make } from "./dom.js";

/** Whether the user says yes. The button that is safe has the focus. */
export function confirmed({ question, detail, yes }) {
  const title = make("h2", { id: "confirm-title", textContent: question });
  const no = make("button", { value: "", autofocus: true, textContent: "Cancel" });
  const form = make("form", { method: "dialog", class: "actions" }, no,
    make("button", { class: "danger", value: "yes", textContent: yes }));
  const about = { class: "confirm", "aria-labelledby": "confirm-title" };
  const dialog = make("dialog", about, title, make("p", { textContent: detail }), form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      answer(dialog.returnValue === "yes");
    });
  });
}

/** Forms with `data-confirm`, `data-detail` and `data-yes` are sent only after that question. */
export function confirmForms() {
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    const { confirm: question, detail, yes } = form.dataset;
    if (!question || form.dataset.confirmed) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!(await confirmed({ question, detail, yes }))) return;
    form.dataset.confirmed = "true";
    form.requestSubmit(event.submitter);
    delete form.dataset.confirmed;
  }, { capture: true });
}
