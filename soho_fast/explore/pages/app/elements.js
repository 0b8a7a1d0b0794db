"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg"; // A name that nothing is fetched by.

  const fill = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") element.addEventListener(name, value);
      else if (name === "style" || name === "dataset") Object.assign(element[name], value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => (child ?? false) !== false));
    return element;
  };

  // Makes an element: attributes by name ("class", "href", ...), functions as event listeners ("click"), `style` and
  // `dataset` as objects; children are elements, texts, null, or lists of these. Texts are never read as markup.
  explorer.element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

  // The same for what stands in an <svg>.
  explorer.svgElement = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  // Numbers as people read them; null is a dash.
  const counted = new Intl.NumberFormat("en"); // toLocaleString makes one at each call
  explorer.formatCount = (number) => (number === null ? "–" : counted.format(number));
  explorer.formatNumber = (number, digits = 3) => {
    if (number === null) return "–";
    const rounded = Number(number.toPrecision(digits));
    return Math.abs(rounded) < 1e6 ? rounded.toLocaleString("en", { maximumSignificantDigits: digits }) : `${rounded}`;
  };
  // What is not all is not called 100 %.
  explorer.formatPercent = (share) => {
    if (share === null) return "–";
    if (share > 0.99 && share < 1) return `${(Math.floor(1000 * share) / 10).toFixed(1)} %`;
    return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  };
  explorer.formatPlural = (number, one, several = `${one}s`) =>
    `${explorer.formatCount(number)} ${number === 1 ? one : several}`;

  // Calls `act` with each element of `elements` when it first comes near the window. Returns a function that adds more.
  explorer.whenNear = (act) => {
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          observer.unobserve(target);
          act(target);
        }
      },
      { rootMargin: "300px" },
    );
    return (element) => observer.observe(element);
  };

  // A text by somebody else, of any length and in any direction: what is too long is folded.
  explorer.foreignText = (text, tag = "p") => {
    const { element } = explorer;
    const LONGEST = 400;
    if (text.length <= LONGEST) return element(tag, { class: "foreign", dir: "auto" }, text);
    const shown = document.createTextNode(`${text.slice(0, LONGEST)}… `);
    const button = element("button", { type: "button", class: "quiet", "aria-expanded": "false" }, "show all");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      shown.data = open ? `${text.slice(0, LONGEST)}… ` : `${text} `;
      button.textContent = open ? "show all" : "show less";
      button.setAttribute("aria-expanded", String(!open));
    });
    return element(tag, { class: "foreign", dir: "auto" }, shown, button);
  };

  // A text in which what is an address on the web can be followed. Marks that turn the direction of a text end one: a
  // link shows where it goes.
  explorer.linkedText = (text) =>
    text
      .split(/(https?:\/\/[^\s,;\p{C}]*[^\s,;.\p{C}])/u)
      .map((part, place) =>
        place % 2 && URL.canParse(part)
          ? explorer.element("a", { href: part, rel: "noreferrer noopener", target: "_blank" }, part)
          : part,
      );

  // What the images of a page owe to others: `numbers` of entries of meta.licences, all where it is left out.
  explorer.licenceLine = (meta, numbers = meta.licences.map((_, number) => number)) => {
    const texts = numbers.map((number) => {
      const { what, credit, licence } = meta.licences[number];
      return explorer.element("li", { dir: "auto" }, explorer.linkedText(`${what}: ${credit}; ${licence}`));
    });
    const what = explorer.isSound ? "Clips: " : "Images: ";
    if (!texts.length) return explorer.element("footer", { class: "licences" }, what, "no licence is known.");
    return explorer.element("footer", { class: "licences" }, what, explorer.element("ul", {}, texts));
  };
})();
