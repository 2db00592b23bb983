// The page of the keys.

import { confirmForms } from "./confirm.js";
import { copyButton, parts } from "./dom.js";

const { secret, copy } = parts(document.querySelector("main"));

confirmForms();
if (secret) {
  copy.append(copyButton(() => secret.value));
  secret.addEventListener("focus", () => secret.select());
  secret.select();
}
