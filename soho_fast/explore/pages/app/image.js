"use strict";

// An image: its index map, captions, licence, and what masked visual modelling hides of it.
(() => {
  const { element, formatCount, formatPercent, formatPlural } = explorer;

  const FIRST_CHIPS = 24;

  // The codes of an image, those with most patches first.
  const countsByCode = (index) => {
    const counts = new Map();
    for (const code of index) if (code !== null) counts.set(code, (counts.get(code) ?? 0) + 1);
    return [...counts].sort(([a, na], [b, nb]) => nb - na || a - b);
  };

  const says = (wall, code) =>
    wall.word[code] === null ? "" : ` · ${wall.word[code]}, × ${explorer.formatNumber(wall.lift[code], 2)}`;

  const masked = (image, wall, source) => {
    const { code, patches } = image.masked;
    const view = explorer.imageWithPatches(image, source, "the image with the hidden patches covered");
    const hidden = new Map(patches.map(({ patch, guesses }) => [patch, guesses]));
    view.patches.forEach((patch, number) => patch?.classList.toggle("hidden-patch", hidden.has(number)));
    const right = patches.filter(({ guesses }) => guesses.length && guesses[0][0] === code).length;

    const guessRows = patches.map(({ patch, guesses }) => {
      const where = `row ${Math.floor(patch / image.columns) + 1}, column ${(patch % image.columns) + 1}`;
      const chips = guesses.map(([guess, probability]) => {
        const name = guess === code ? "chip right" : "chip";
        const link = { class: name, href: explorer.address("code", String(guess)), title: wall.word[guess] ?? "" };
        const text = `${explorer.codeName(guess)} · ${formatPercent(probability)}`;
        return element("a", link, explorer.codeCrop(wall, guess, 28), text);
      });
      return element("li", {}, element("span", { class: "hint" }, where), element("span", { class: "guesses" }, chips));
    });
    return element(
      "section",
      { class: "masked" },
      element("h2", {}, "What masked visual modelling hides"),
      element(
        "p",
        { class: "hint" },
        "All patches of a code are hidden together, so that none can be copied from its neighbour: here ",
        element("a", { href: explorer.address("code", String(code)) }, `code ${explorer.codeName(code)}`),
        `, ${formatPlural(patches.length, "patch", "patches")}. From the rest and the caption the model guesses ` +
          `what was there; its best guess is right in ${right} of ${patches.length}.`,
      ),
      element("div", { class: "masked-view" }, view.root, element("ul", { class: "plain" }, guessRows)),
    );
  };

  const showImage = async (root, number, parameters, meta) => {
    const [image, wall, words] = await Promise.all([
      explorer.loadImage(number),
      explorer.loadWall(),
      meta.has_captions ? explorer.load("words").catch(() => []) : [], // The page says the rest without them.
    ]);
    const [asked, askedWord] = ["code", "word"].map((name) => parameters.get(name));
    const lit = asked !== null && image.index.includes(Number(asked)) ? Number(asked) : null;
    // The level that is asked for, or that of the code.
    const size = image.rows * image.columns;
    const levelOfLit = lit === null ? 1 : 1 + Math.floor(image.index.indexOf(lit) / size);
    const level = explorer.levelOf(parameters, meta, levelOfLit);
    const index = image.index.slice((level - 1) * size, level * size);
    const counts = new Map(countsByCode(index));
    const source = explorer.imagePath(number);

    // What can be lit: {codes, name}, `asked` in the address of this page, `href` of its own page.
    const ofCode = (code) => {
      const name = `code ${explorer.codeName(code)}`;
      return { codes: [code], name, asked: { code }, href: explorer.address("code", String(code)) };
    };
    const ofWord = (word, codes) => ({ codes, name: word, asked: { word }, href: explorer.address("words", word) });
    const known = new Map(); // word, in all its forms, to what it lights
    for (const { word, forms, codes } of words.filter((each) => each.codes.length)) {
      const one = ofWord(word, codes.map(({ code }) => code));
      for (const form of [word, ...forms]) known.set(form, one);
    }
    let kept = known.get(askedWord) ?? (lit === null ? null : ofCode(lit)); // Lit while nothing is pointed at.

    const status = element("p", { class: "status", role: "status" });
    let current;
    const show = (one) => {
      const codes = one && one.codes;
      map.light(codes);
      const count = view.light(codes);
      for (const { one: own, button } of buttons) {
        button.classList.toggle("lit", !!codes?.some((code) => own.codes.includes(code)));
        button.setAttribute("aria-pressed", String(own === kept));
      }
      if (one === current) return; // A link that is being clicked stays.
      current = one;
      if (one === null) {
        status.textContent =
          asked !== null && lit === null
            ? `No patch here has code ${explorer.codeName(asked)}.`
            : "Point at a patch, or at a word, to see where its codes lie; a click on a patch opens its code.";
        return;
      }
      status.replaceChildren(
        one.href ? element("a", { href: one.href, dir: "auto" }, one.name) : one.name,
        element("span", { dir: "auto" }, one.asked?.code === undefined ? "" : says(wall, one.asked.code)),
        ` · ${formatPlural(count, "patch", "patches")} here`,
      );
    };
    // A button that lights what it stands for while it is pointed at or has the focus; a click keeps it lit.
    const buttons = [];
    const lightButton = (one, className, ...children) => {
      const [on, off] = [() => show(one), () => show(kept)];
      const click = () => {
        kept = kept === one ? null : one;
        show(kept);
        explorer.replaceAddress("image", String(number), { level: level === 1 ? "" : level, ...kept?.asked });
      };
      const lights = { pointerenter: on, focus: on, pointerleave: off, blur: off, click };
      const button = element("button", { type: "button", class: className, ...lights }, children);
      buttons.push({ one, button });
      return button;
    };

    const caption = image.captions.find((text) => text.trim() !== "");
    const title = `Image ${number}`;
    const label = caption === undefined ? `image ${number}` : caption.slice(0, 200);
    const onPoint = (code) => show(code === null ? kept : ofCode(code));
    const shown = { ...image, index };
    const view = explorer.imageWithPatches(shown, source, label, onPoint);
    const colourOf = explorer.codeColours(wall);
    const map = explorer.imageWithPatches(shown, null, `the codes of image ${number} as colours`, onPoint);
    for (const patch of map.patches.filter((one) => one !== null)) {
      const code = Number(patch.dataset.code);
      patch.style.setProperty("--colour", colourOf(code));
      patch.append(element("span", { class: "patch-code" }, explorer.codeName(code)));
    }
    const views = element("div", { class: "image-views" }, view.root, map.root);

    // The legend: codes by their word; without captions, and where a code has a name, each by itself.
    const isAlone = (key) => typeof key === "number";
    const groups = Map.groupBy(counts.keys(), (code) =>
      wall.label[code] !== null || !meta.has_captions ? code : wall.word[code],
    );
    const legend = [...groups].map(([word, codes]) => {
      const one = isAlone(word) ? ofCode(word) : word === null ? { codes, name: "no word" } : ofWord(word, codes);
      const count = codes.reduce((sum, code) => sum + counts.get(code), 0);
      return lightButton(
        one,
        "chip",
        element("span", { class: "swatch", style: { background: colourOf(codes[0]) } }),
        element("span", { dir: "auto" }, wall.label[codes[0]] ?? one.name),
        element("span", { class: "hint" }, formatPlural(count, "patch", "patches")),
      );
    });
    const chips = element("div", { class: "chips" });
    const more = explorer.fold(chips, legend, FIRST_CHIPS);
    const marked = (text) => explorer.markWords(text, known, (part, one) => lightButton(one, "said", part));

    const walk = explorer.walk("image", number, meta.num_shown, { code: asked, word: askedWord });
    const texts = image.captions.map((each) => explorer.foreignText(each, "li", marked));
    const captions = texts.length
      ? element("ul", { class: "captions" }, texts)
      : element("p", { class: "nothing" }, "It has none.");
    const from = meta.sources[image.source]?.name ?? "an unknown data set";
    const origin = `${image.name}, of ${from}; shown smaller.`;
    show(kept);
    root.append(
      element("div", { class: "title" }, element("h1", {}, title), walk),
      element(
        "div",
        { class: "image-view" },
        element(
          "div",
          { class: "image-stage" },
          views,
          status,
          explorer.levelBox(meta, level, (chosen) => {
            location.hash = explorer.address("image", String(number), { level: chosen });
          }),
        ),
        element(
          "div",
          { class: "image-side" },
          element("h2", {}, "Captions"),
          captions,
          element("h2", {}, "Codes"),
          element("p", { class: "hint" }, "The colours of the patches; codes with the same word look alike."),
          chips,
          more,
          element("h2", {}, "Origin"),
          element("p", { class: "foreign", dir: "auto" }, origin),
          explorer.licenceLine(meta, image.licences),
        ),
      ),
      image.masked ? masked(image, wall, source) : "",
    );
    return title;
  };

  // All images that there are, so that any can be come by.
  const showAll = (root, meta) => {
    const fillWhenNear = explorer.whenNear((link) => {
      const number = Number(link.dataset.image);
      link.append(element("img", { src: explorer.imagePath(number), alt: "", loading: "lazy" }));
    });
    const links = Array.from({ length: meta.num_shown }, (_, number) =>
      element("a", {
        href: explorer.address("image", String(number)),
        dataset: { image: number },
        "aria-label": `image ${number}`,
      }),
    );
    links.forEach(fillWhenNear);
    const title = "Images";
    const rest = meta.num_images - meta.num_shown;
    root.append(
      element("h1", {}, title),
      explorer.lead(
        rest > 0
          ? `${formatCount(meta.num_shown)} of the ${formatCount(meta.num_images)} images that statistics come from.`
          : `All ${formatCount(meta.num_images)} images that statistics come from.`,
      ),
      element("div", { class: "gallery", dataset: { content: "" } }, links),
      explorer.licenceLine(meta),
    );
    return title;
  };

  explorer.pages.set("image", {
    title: "Images",
    show: async (root, argument, parameters, meta) => {
      if (argument === "") return showAll(root, meta);
      if (!/^\d+$/.test(argument)) {
        throw new Error(`image: expected a number from 0 to ${meta.num_shown - 1}, got "${argument}"`);
      }
      return showImage(root, Number(argument), parameters, meta);
    },
  });
})();
