/** Elements, built without HTML: what comes from rows is other people's text, and never read as markup. */

/**
 * An element: `h("a", {class: "x", href: "#", onclick: f}, "text", child)`.
 * Members that begin with `on` are listeners, `vars` are CSS variables; null, undefined and false are left out.
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, to] of Object.entries(value)) element.style.setProperty(`--${key}`, to);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return add(element, children);
}

function add(parent, children) {
  for (const child of children.flat(Infinity)) if (child != null && child !== false) parent.append(child);
  return parent;
}

/** Put children in place of what an element has. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  return add(parent, children);
}

/** Build a place anew, and leave the keyboard where it was in it. */
export function keepFocus(place, build) {
  const it = document.activeElement;
  const within = it !== place && place.contains(it);
  const alike = () => [...place.querySelectorAll(it.localName)];
  const at = within ? alike().indexOf(it) : -1;
  const result = build();
  if (within && !place.contains(document.activeElement)) {
    const same = it.id ? place.querySelector(`#${CSS.escape(it.id)}`) : it.type === "radio" ? alike().find((one) => one.name === it.name && one.value === it.value) : alike()[at];
    same?.focus({ preventScroll: true });
  }
  return result;
}

/** Other people's text: its direction touches nothing beside it, and what does not fit is cut (see `showWhole`). */
export function text(value, none = "(none)") {
  if (value == null || value === "") return h("span", { class: "none" }, none);
  return h("bdi", { class: "cut" }, String(value));
}

/** A button. */
export function button(label, onclick, props) {
  return h("button", { type: "button", onclick, ...props }, label);
}

/** Radio buttons that look like one control. `options` are pairs of value and label. */
export function choice(name, label, options, chosen, onchange) {
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", { class: "unseen" }, label),
    options.map(([value, shown]) =>
      h(
        "label",
        null,
        h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }),
        h("span", null, shown),
      ),
    ),
  );
}

/** A menu of pairs of value and label. */
export function select(label, options, chosen, onchange, props) {
  const menu = h(
    "select",
    { "aria-label": label, onchange: (event) => onchange(event.target.value), ...props },
    options.map(([value, shown]) => h("option", { value, selected: value === chosen }, shown)),
  );
  return menu;
}

/**
 * A table. A column is `{head, cell(row), number, class, title}`; a cell is a node, text or a list of these.
 * The first column heads each row. `open(row)` makes rows react to a click; the cell should have a link or a button too.
 */
export function table(caption, columns, rows, { open, key, chosen, seen } = {}) {
  const kind = (column) => [column.number && "number", column.class].filter(Boolean).join(" ") || null;
  return h(
    "table",
    { class: open ? "opens" : null },
    h("caption", { class: seen ? null : "unseen" }, caption),
    h("thead", null, h("tr", null, columns.map((column) =>
      h("th", { scope: "col", class: kind(column), title: column.title, "aria-sort": column.sort }, column.head)))),
    h("tbody", null, rows.map((row) =>
      h("tr", {
        "data-key": key?.(row),
        class: row.class,
        "aria-current": chosen != null && key(row) === chosen ? "true" : null,
        onclick: open && ((event) => { if (!event.target.closest("a, button") && !getSelection().toString()) open(row); }),
      }, columns.map((column, at) =>
        at ? h("td", { class: kind(column) }, column.cell(row)) : h("th", { scope: "row", class: kind(column) }, column.cell(row)))))),
  );
}

/** A share of 1 as a bar; `mark` is where it is going. The figures stand beside it, so it says nothing itself. */
export function bar(share, { mark, state } = {}) {
  const width = (value) => `${Math.max(0, Math.min(1, value)) * 100}%`;
  return h("span", { class: "bar", "data-state": state, "aria-hidden": "true", vars: { share: width(share) } },
    mark == null ? null : h("i", { vars: { mark: width(mark) } }));
}

/** What is there in place of figures: nothing yet, or a fault; and what to do. */
export function notice(title, words, actions = [], kind = "empty") {
  return h("div", { class: `notice ${kind}`, role: kind === "fault" ? "alert" : null },
    h("strong", null, title), words ? h("p", null, words) : null, actions.length ? h("p", { class: "actions" }, actions) : null);
}

/** A modal dialog; it closes by Escape, by its button, or by what `fillIn(dialog)` puts in. */
export function dialog(title, ...children) {
  const heading = `dialog-${Math.random().toString(36).slice(2)}`;
  const element = h("dialog", { "aria-labelledby": heading, autofocus: true, onclose: () => element.remove() },
    h("header", null, h("h2", { id: heading }, title), button("×", () => element.close(), { class: "close", "aria-label": "Close" })),
    children);
  document.body.append(element);
  element.showModal();
  return element;
}

/** Say something to who cannot see that it happened. */
export function say(words) {
  const place = document.getElementById("said");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = words; });
}

/** Copy text, or select it where the browser does not let a page copy (plain HTTP). */
export async function copy(value, shown) {
  try {
    await navigator.clipboard.writeText(value);
    say("Copied");
    return true;
  } catch {
    if (shown) getSelection().selectAllChildren(shown);
    return false;
  }
}

/** A button that copies. */
export function copier(value, label = "Copy", shown = null) {
  const it = button(label, async () => {
    it.textContent = (await copy(value, shown)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { it.textContent = label; }, 2000);
  });
  return it;
}

/** Show the whole of a text that is cut, when the pointer or the keyboard is on it; Escape hides it. */
export function showWhole() {
  const tip = h("div", { id: "whole", role: "tooltip", hidden: true });
  document.body.append(tip);
  const show = (event) => {
    const cut = event.target.closest?.(".cut") ?? event.target.querySelector?.(":scope > .cut");
    tip.hidden = !cut || cut.scrollWidth <= cut.clientWidth;
    if (tip.hidden) return;
    tip.textContent = cut.textContent;
    const box = cut.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.bottom + tip.offsetHeight + 8 > innerHeight ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
  };
  for (const type of ["pointerover", "focusin"]) document.addEventListener(type, show);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
}
