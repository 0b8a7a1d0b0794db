"use strict";

// Addresses are #/page/argument?name=value; each page registers explorer.pages.set(name, {title, show}), where
// show(root, argument, parameters, meta) fills `root`, may be async, and may return a title of its own. A page with
// inHeader: false has no link in the header. The first page is the wall.
(() => {
  const { element, pages } = explorer;
  const SCHEMA = 4;
  let current = 0; // The newest visit; an older page that is still loading shows nothing any more.

  const safelyDecoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };

  explorer.readAddress = () => {
    const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const [page = "", argument = ""] = path.split("/");
    return { page: page || "wall", argument: safelyDecoded(argument), parameters: new URLSearchParams(query) };
  };

  explorer.address = (page, argument = "", parameters = {}) => {
    const query = new URLSearchParams(
      Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""),
    ).toString();
    const path = argument === "" ? page : `${page}/${encodeURIComponent(argument.toWellFormed())}`;
    return `#/${path}${query ? `?${query}` : ""}`;
  };

  // Changes the address without a new visit: what a page has itself shown already.
  explorer.replaceAddress = (...parts) => {
    history.replaceState(history.state, "", explorer.address(...parts));
    document.body.dataset.shown = location.hash;
  };

  const isEmpty = (name, meta) => name === "words" && meta && !meta.has_captions;

  // Past the header and the controls, to what the page is about.
  const skip = (event) => {
    event.preventDefault();
    const content = document.querySelector("main [data-content]");
    (content?.querySelector('[tabindex="0"], a[href]:not([tabindex="-1"])') ?? document.getElementById("page")).focus();
  };

  const showHeader = (meta, page) => {
    const search = element("input", {
      type: "search",
      name: "find",
      placeholder: "code or word",
      "aria-label": "go to a code by its number, or to a word",
      autocomplete: "off",
      enterkeyhint: "go",
    });
    const find = (event) => {
      event.preventDefault();
      const text = search.value.trim();
      if (text === "") return;
      search.blur();
      const code = explorer.codeNumber(text);
      location.hash = explorer.address(...(code === null ? ["words", "", { search: text }] : ["code", String(code)]));
    };
    const links = [...pages]
      .filter(([name, { inHeader = true }]) => inHeader && (name === page || !isEmpty(name, meta)))
      .map(([name, { title }]) =>
        element("a", { href: explorer.address(name), "aria-current": name === page ? "page" : null }, title),
      );
    // `soho app` serves these pages below its own, and says so in the address.
    const toApp = location.search === "?app" && element("a", { href: "../" }, "← App");
    document
      .getElementById("header")
      .replaceChildren(
        element("a", { class: "skip", href: "#page", click: skip }, "Skip to the content"),
        element(
          "a",
          { class: "brand", href: explorer.address("wall"), dir: "auto" },
          meta?.title ?? "Dictionary explorer",
        ),
        element("nav", { "aria-label": "pages" }, toApp, links),
        element("form", { class: "find", role: "search", submit: find }, search),
      );
  };

  // Where the reader was on each page of the tab's history: back goes there.
  const places = new Map();
  history.scrollRestoration = "manual";

  const leave = () => {
    const link = document.querySelector("main a:focus");
    const number = link ? [...document.querySelectorAll("main a")].indexOf(link) : -1;
    if (places.has(current)) Object.assign(places.get(current), { top: window.scrollY, number, href: link?.href });
  };

  const arrive = (place, first) => {
    window.scrollTo(0, place.top);
    const link = place.number >= 0 ? document.querySelectorAll("main a")[place.number] : null;
    const focused = link && link.href === place.href ? link : document.getElementById("page");
    if (!first) focused.focus({ preventScroll: true });
  };

  const visit = async () => {
    const first = current === 0;
    leave();
    current = history.state?.visit ?? Math.max(0, ...places.keys()) + 1;
    const visited = current;
    if (!places.has(visited)) places.set(visited, { top: 0, number: -1, href: null });
    history.replaceState({ visit: visited }, "");

    document.getElementById("page").setAttribute("aria-busy", "true");
    const { page, argument, parameters } = explorer.readAddress();
    const known = pages.get(page);
    const root = element("div", { class: `page page-${known ? page : "missing"}` });
    let meta = null;
    let title = known?.title ?? "No such page";
    try {
      meta = await explorer.load("meta");
      if (meta.schema !== SCHEMA) {
        throw new Error(`data/meta.js: expected schema ${SCHEMA}, got ${meta.schema}: build the explorer again`);
      }
      explorer.readLevels(meta);
      if (!known) throw new Error(`there is no page "${page}"`);
      title = (await known.show(root, argument, parameters, meta)) ?? title;
    } catch (error) {
      console.info(error);
      const isOurs = error.constructor === Error;
      const text = isOurs
        ? error.message
        : `the data of this page are damaged (${error.message}): build the explorer again`;
      root.replaceChildren(
        element("h1", {}, title),
        element("div", { class: "error", role: "alert" }, explorer.foreignText(text)),
      );
    }
    if (visited !== current) return;
    showHeader(meta, page);
    document.title = `${title} · ${meta?.title ?? "Dictionary explorer"}`;
    document.getElementById("page").replaceChildren(root);
    document.getElementById("page").removeAttribute("aria-busy");
    document.body.dataset.shown = location.hash || "#/wall"; // Tells tests that this page stands.
    arrive(places.get(visited), first);
  };

  window.addEventListener("hashchange", visit);
  window.addEventListener("DOMContentLoaded", visit);
})();
