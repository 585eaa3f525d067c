/** Audit: who changed which key or group, when, and from what to what. */

import { get } from "./api.js";
import { button, fill, h, notice, table, text } from "./dom.js";
import { exact, time } from "./format.js";
import { fault } from "./overview.js";
import { link } from "./state.js";

const shown = (value) => (value == null ? "none" : Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value));

export function audit(root, context) {
  const list = h("div", { class: "place" });
  let entries = null;
  fill(root, h("h1", { class: "unseen" }, "Audit"), h("div", { class: "toolbar" }, h("span", { class: "muted grow" }, "Changes made on this page and through its API, newest first. No secret stands here."), button("Refresh", show, { title: "r" })), list);

  async function show() {
    list.setAttribute("aria-busy", "true");
    try {
      ({ entries } = await get("audit", { limit: 200 }));
      draw();
    } catch (error) {
      if (error.status !== 401) fill(list, fault(error, show));
    }
    list.removeAttribute("aria-busy");
  }

  function draw() {
    if (!entries.length) return void fill(list, notice("No changes yet", ["Changes of keys and groups stand here once ", h("code", null, "[admin] manage_keys"), " is on. Changes made by commands are in the key file’s own history."]));
    fill(list, h("div", { class: "scroll" }, table("Changes, newest first", [
      { head: "When", class: "nowrap", cell: (one) => h("span", { title: exact(one.at) }, time(one.at, "second")) },
      { head: "Who", class: "nowrap", cell: (one) => [one.actor.role, h("span", { class: "muted" }, " from ", text(one.actor.address, "a UNIX socket"))] },
      { head: "What", class: "nowrap", cell: (one) => one.action.replace(".", " ") },
      { head: "Of", class: "mono clip", cell: (one) => target(one.target) },
      { head: "Change", class: "changes", cell: (one) => differences(one) },
      { head: "Outcome", class: "wide nowrap", cell: (one) => text(one.outcome, "") },
    ], entries)));
  }

  const target = (of) => (typeof of === "object" ? h("a", { href: link(`${of.kind}s`, { open: of.id }, []) }, text(of.kind === "group" ? `@${of.id}` : of.id)) : h("a", { href: String(of).startsWith("@") ? link("groups", { open: of.slice(1) }, []) : link("keys", { open: of }, []) }, text(of)));

  function differences({ before, after }) {
    const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])].filter((name) => shown(before?.[name]) !== shown(after?.[name]));
    return names.map((name) => h("div", { class: "difference" }, h("span", { class: "muted" }, name), " ", before && name in before ? [text(shown(before[name])), " → "] : null, text(shown(after?.[name]))));
  }

  return { show, redraw() { if (entries) draw(); }, close() {} };
}
