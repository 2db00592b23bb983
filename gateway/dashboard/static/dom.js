// Elements out of words. Text is always text: nothing here reads HTML.

/** An element. `about`: its properties; `class` and names with a dash are attributes. */
export function make(tag, about = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name === "class" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The elements of a part of the page, by the names in their `data-part`. */
export function parts(root) {
  return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((one) => [one.dataset.part, one]));
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text, words = "Copy") {
  const button = make("button", { type: "button", class: "quiet", textContent: words });
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Select it and press Ctrl+C";
    setTimeout(() => (button.textContent = words), 2000);
  });
  return button;
}

/** Browsers let pages write to the clipboard only at addresses that they trust: loopback, and https. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
