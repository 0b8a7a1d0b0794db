"use strict";

// Addresses are #/page/argument?name=value; each page registers explorer.pages.set(name, {title, show}), where
// show(root, argument, parameters, meta) fills `root` and may be async. The first page is the wall.
(() => {
  const { element, pages } = explorer;
  let current = 0; // The newest visit; an older page that is still loading shows nothing any more.

  explorer.readAddress = () => {
    const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const [page = "", argument = ""] = path.split("/");
    return { page: page || "wall", argument: safelyDecoded(argument), parameters: new URLSearchParams(query) };
  };

  explorer.address = (page, argument = "", parameters = {}) => {
    const query = new URLSearchParams(
      Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""),
    ).toString();
    const path = argument === "" ? page : `${page}/${encodeURIComponent(argument)}`;
    return `#/${path}${query ? `?${query}` : ""}`;
  };

  // Changes the address without a new visit: what a page has itself shown already.
  explorer.replaceAddress = (...parts) => history.replaceState(null, "", explorer.address(...parts));

  const safelyDecoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };

  const showHeader = (meta, page) => {
    const links = [...pages]
      .filter(([, { inHeader = true }]) => inHeader)
      .map(([name, { title }]) =>
        element("a", { href: explorer.address(name), "aria-current": name === page ? "page" : null }, title),
      );
    document.getElementById("header").replaceChildren(
      element("a", { class: "brand", href: explorer.address("wall") }, meta ? meta.title : "Dictionary explorer"),
      element("nav", { "aria-label": "pages" }, links),
    );
  };

  const visit = async () => {
    const visited = ++current;
    const { page, argument, parameters } = explorer.readAddress();
    // Keys and timers of the page before end with its own root.
    const root = element("div", { class: `page page-${pages.has(page) ? page : "missing"}` });
    try {
      const meta = await explorer.load("meta");
      if (meta.schema !== 1) throw new Error(`these pages read schema 1, the data have ${meta.schema}: build anew`);
      if (!pages.has(page)) throw new Error(`there is no page ${page}`);
      showHeader(meta, page);
      document.title = `${pages.get(page).title} · ${meta.title}`;
      await pages.get(page).show(root, argument, parameters, meta);
    } catch (error) {
      if (!document.getElementById("header").firstChild) showHeader(null, page);
      root.replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
    }
    if (visited !== current) return;
    document.getElementById("page").replaceChildren(root);
    document.body.dataset.shown = location.hash || "#/wall"; // Tells tests that this page stands.
    window.scrollTo(0, 0);
  };

  window.addEventListener("hashchange", visit);
  window.addEventListener("DOMContentLoaded", visit);
})();
