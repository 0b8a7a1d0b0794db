"use strict";

(() => {
  // Makes an element: attributes by name ("class", "href", ...), functions as event listeners ("click"), `style` and
  // `dataset` as objects; children are elements, texts, null, or lists of these. Texts are never read as markup.
  explorer.element = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") element.addEventListener(name, value);
      else if (name === "style" || name === "dataset") Object.assign(element[name], value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => (child ?? false) !== false));
    return element;
  };

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

  explorer.notice = (...children) => explorer.element("p", { class: "notice" }, children);
  explorer.lead = (...children) => explorer.element("p", { class: "lead" }, children);
  explorer.wordLink = (word) => {
    const link = { href: explorer.address("words", word), class: "foreign", dir: "auto" };
    return explorer.element("a", link, word);
  };

  explorer.card = (heading, hint, ...children) => {
    const { element } = explorer;
    const about = hint && element("p", { class: "hint" }, hint);
    return element("section", { class: "card", "aria-label": heading }, element("h2", {}, heading), about, children);
  };

  // A table of such a class, `body` being its tbody.
  explorer.table = (name, heads, body) => {
    const { element } = explorer;
    const cells = heads.map((words) => element("th", { scope: "col", dir: "auto" }, words));
    return element("table", { class: name }, element("thead", {}, element("tr", {}, cells)), body);
  };

  // One of some values to choose, [[value, what it is called]], as buttons or as a box that opens; `onChange` is called
  // with the new one.
  explorer.choices = (label, options, chosen, onChange) => {
    const { element } = explorer;
    const change = ({ target }) => onChange(target.value);
    const made = options.map(([value, words]) => {
      const button = { type: "radio", name: label, value, checked: value === chosen, change };
      return element("label", { class: "choice" }, element("input", button), element("span", {}, words));
    });
    return element("fieldset", { class: "choices", "aria-label": label }, made);
  };
  explorer.selectBox = (label, options, chosen, onChange) => {
    const { element } = explorer;
    const made = options.map(([value, words]) => element("option", { value, selected: value === chosen }, words));
    const box = element("select", { name: label, change: ({ target }) => onChange(target.value) }, made);
    return element("label", {}, `${label} `, box);
  };

  // Links to the pages of the number before and of the one after, of `count`.
  explorer.walk = (page, number, count, parameters) => {
    const link = (rel, target, words) =>
      target < 0 || target >= count
        ? explorer.element("span", { class: "button", "aria-disabled": "true" }, words)
        : explorer.element("a", { class: "button", rel, href: explorer.address(page, `${target}`, parameters) }, words);
    const links = [link("prev", number - 1, "← previous"), link("next", number + 1, "next →")];
    return explorer.element("nav", { class: "walk", "aria-label": "previous and next" }, links);
  };

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

  // Puts `children` into `box`, at first so many. Returns a button that adds the rest, null where there is none.
  explorer.fold = (box, children, most) => {
    box.append(...children.slice(0, most));
    if (children.length <= most) return null;
    const more = explorer.element("button", { type: "button", class: "quiet" }, `show all ${children.length}`);
    more.addEventListener("click", () => {
      box.append(...children.slice(most));
      more.remove();
    });
    return more;
  };

  // A text by somebody else, of any length and in any direction: what is too long is folded. `mark` makes a list of
  // texts and elements of a text.
  explorer.foreignText = (text, tag = "p", mark = (part) => [part]) => {
    const { element } = explorer;
    const LONGEST = 400;
    if (text.length <= LONGEST) return element(tag, { class: "foreign", dir: "auto" }, mark(text));
    const shown = element("span");
    const button = element("button", { type: "button", class: "quiet" });
    const show = (open) => {
      shown.replaceChildren(...mark(open ? text : `${text.slice(0, LONGEST)}…`), " ");
      button.textContent = open ? "show less" : "show all";
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "false"));
    show(false);
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

  // A text in parts: of each of the words in `known`, spelling -> value, the longest first, what `mark` makes of the
  // text and the value.
  explorer.markWords = (text, known, mark) => {
    const lower = text.toLowerCase();
    const words = [...known.keys()].filter((word) => lower.includes(word)).sort((a, b) => b.length - a.length);
    if (!words.length) return [text];
    const escaped = words.map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    const isLetter = "[\\p{L}\\p{M}\\p{N}]";
    return text
      .split(new RegExp(`(?<!${isLetter})(${escaped.join("|")})(?!${isLetter})`, "giu"))
      .map((part) => (known.has(part.toLowerCase()) ? mark(part, known.get(part.toLowerCase())) : part));
  };

  // How many letters are added, left out or replaced between two words.
  const edits = (one, other) => {
    let row = Array.from({ length: other.length + 1 }, (_, place) => place);
    for (const [number, letter] of [...one].entries()) {
      const next = [number + 1];
      for (let place = 0; place < other.length; place++) {
        const replaced = row[place] + (letter === other[place] ? 0 : 1);
        next.push(Math.min(replaced, row[place + 1] + 1, next[place] + 1));
      }
      row = next;
    }
    return row.at(-1);
  };

  // " The nearest: " and links to the words that are spelled most like a text; nothing where none is.
  explorer.nearestWords = (text, words) => {
    const most = Math.max(2, text.length / 2);
    const counted = [...new Set(words)].map((word) => [edits(text.slice(0, 40), word), word]);
    const near = counted.filter(([count]) => count <= most).sort(([a], [b]) => a - b).slice(0, 5);
    const links = near.map(([, word], place) => [place ? ", " : "", explorer.wordLink(word)]);
    return links.length ? [" The nearest: ", links, "."] : null;
  };

  // What the images of a page owe to others: `numbers` of entries of meta.licences, all where it is left out.
  explorer.licenceLine = (meta, numbers = meta.licences.map((_, number) => number)) => {
    const texts = numbers.map((number) => {
      const { what, credit, licence } = meta.licences[number];
      return explorer.element("li", { dir: "auto" }, explorer.linkedText(`${what}: ${credit}; ${licence}`));
    });
    if (!texts.length) return explorer.element("footer", { class: "licences" }, "Images: no licence is known.");
    return explorer.element("footer", { class: "licences" }, "Images: ", explorer.element("ul", {}, texts));
  };
})();
