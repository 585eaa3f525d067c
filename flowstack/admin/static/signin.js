/** Sign-in: the token goes to the service once, and stays nowhere in the page. */

import { send } from "./api.js";
import { fill, h } from "./dom.js";

export function signIn(root, done) {
  const fault = h("p", { id: "fault", class: "bad", role: "alert" });
  const token = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "fault advice" });
  const submit = h("button", { type: "submit", class: "main" }, "Sign in");
  fill(root, h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    submit.disabled = true;
    fault.textContent = "";
    try {
      await send("POST", "session", { token: token.value.trim() });
      token.value = "";
      await done();
    } catch (error) {
      fault.textContent = error.message + (error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "");
      token.setAttribute("aria-invalid", "true");
      submit.disabled = false;
      token.select();
    }
  } },
    h("h1", null, "Sign in"),
    h("label", { for: "token" }, "Token"), token, fault, submit,
    h("p", { id: "advice", class: "muted" }, "It stands in the file that ", h("code", null, "[admin] token_file"), " names, or ", h("code", null, "manage_token_file"), " to change keys too.")));
  token.focus();
}
