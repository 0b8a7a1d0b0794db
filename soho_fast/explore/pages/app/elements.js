"use strict";

// Makes an element: attributes by name ("class", "href", ...), functions as event listeners ("click"), `style` and
// `dataset` as objects; children are elements or texts. Texts are never read as markup.
explorer.element = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style" || name === "dataset") Object.assign(element[name], value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
};

// Numbers as people read them.
explorer.formatCount = (number) => number.toLocaleString("en");
explorer.formatNumber = (number, digits = 3) => (number === null ? "–" : Number(number.toPrecision(digits)).toString());
explorer.formatPercent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
