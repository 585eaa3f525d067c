/** Audit: who changed which key or group, when, and from what to what. */

import { get } from "./api.js";
import { button, fill, h, notice, table, text } from "./dom.js";
import { exact, time } from "./format.js";
import { fault } from "./overview.js";
import { link } from "./state.js";

const shown = (value) => (value == null || value === false || value === "" || value.length === 0 ? "none" : Array.isArray(value) ? value.join(", ") : value === true ? "yes" : String(value));
const ACTIONS = { add: "made", change: "changed", rotate: "rotated", remove: "removed" };

export function audit(root, context) {
  const list = h("div", { class: "place list" });
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
      { head: "Who", class: "nowrap mid", cell: (one) => [one.actor.role, h("span", { class: "muted" }, " from ", text(one.actor.address, "a UNIX socket"))] },
      { head: "What", class: "nowrap", cell: (one) => [action(one.action), h("span", { class: "second" }, target(one))] },
      { head: "Of", class: "mono clip wrapped", cell: (one) => target(one) },
      { head: "Change", class: "changes", cell: (one) => differences(one) },
    ], entries)));
  }

  const action = (words) => { const [kind, act] = words.split("."); return `${kind.replace(/s$/, "")} ${ACTIONS[act] ?? act}`; };
  const target = ({ action: words, target: of }) => (words.startsWith("groups") ? h("a", { href: link("groups", { open: of }, []) }, text(`@${of}`)) : h("a", { href: link("keys", { open: of }, []) }, text(of)));

  function differences({ action: words, before, after, outcome }) {
    if (outcome === "unknown") return h("span", { class: "warn" }, "begun; not known whether it was made: see the key or group");
    const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])].filter((name) => shown(before?.[name]) !== shown(after?.[name]));
    if (!names.length && words.endsWith("rotate")) return h("span", { class: "muted" }, "a new secret");
    return names.map((name) => h("div", { class: "difference" }, h("span", { class: "muted" }, name), " ", before ? text(shown(before[name])) : null, before && after ? " → " : null, after ? text(shown(after[name])) : null));
  }

  return { show, redraw() { if (entries) draw(); }, close() {} };
}
