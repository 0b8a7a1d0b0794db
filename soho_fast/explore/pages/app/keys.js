"use strict";

// Keys that hold on every page. Previous and next are links with rel="prev" and rel="next", which a page may have; a
// page with keys of its own stops the event before it comes here.
(() => {
  const { element } = explorer;

  const keysOf = (noun) => [
    ["← →, or k j", `previous, next: code, ${noun}; on the wall and in ${noun}s from tile to tile`],
    ["↑ ↓", `on the wall and in ${noun}s: the row above, below`],
    ["Enter", "open"],
    ["/", "search"],
    ["g then w, o, p, m, t, a", `go to the wall, words, ${noun}s, map, timeline, ask`],
    ["Esc", "close; leave a field"],
    ["?", "these keys"],
  ];

  // Keys of one letter or sign can be switched off (WCAG 2.1.4): speech recognition types them unasked.
  const SWITCH = "explorer: no single-letter keys";
  explorer.stored = (act) => {
    try {
      return act(localStorage);
    } catch {
      return null; // A browser may keep nothing for a page from a disk.
    }
  };
  let isOff = explorer.stored((storage) => storage.getItem(SWITCH)) === "yes";

  explorer.showKeys = () => {
    const dialog = element("dialog", { class: "keys", "aria-label": "keys", close: () => dialog.remove() });
    const told = keysOf(explorer.noun ?? "image");
    const rows = told.map(([keys, what]) => [element("dt", {}, keys), element("dd", {}, what)]);
    const close = element("button", { type: "button", click: () => dialog.close() }, "close");
    const box = element("input", {
      type: "checkbox",
      checked: !isOff,
      change: ({ target }) => {
        isOff = !target.checked;
        explorer.stored((storage) => (isOff ? storage.setItem(SWITCH, "yes") : storage.removeItem(SWITCH)));
      },
    });
    const off = element("label", { class: "choice-line" }, box, " keys of a single letter or sign");
    dialog.append(element("h2", {}, "Keys"), element("dl", {}, rows), element("p", {}, off), close);
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
    document.body.append(dialog);
    dialog.showModal();
  };

  const GOES = { w: "wall", o: "words", p: "image", m: "map", t: "timeline", a: "ask" };
  const STEPS = { ArrowLeft: "prev", k: "prev", ArrowRight: "next", j: "next" };
  let going = false;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const { key, target } = event;
    const isField = target.matches?.("input, select, textarea, [contenteditable]");
    if (isField) {
      if (key === "Escape") target.blur();
      return;
    }
    if (document.querySelector("dialog[open]") || (isOff && key.length === 1)) return;
    const goes = going ? GOES[key] : null;
    going = key === "g";
    if (goes) location.hash = explorer.address(goes);
    else if (key === "?") explorer.showKeys();
    else if (key === "/") {
      event.preventDefault();
      const search = document.querySelector("main input[type=search]") ?? document.querySelector("header input");
      search?.focus();
      search?.select();
    } else if (STEPS[key]) document.querySelector(`main a[rel="${STEPS[key]}"]`)?.click();
  });
})();
