"use strict";

// Words of the captions, and the codes that say something of them.
(() => {
  const { element, formatCount, formatNumber, formatPercent, formatPlural } = explorer;

  const [MOST_CODES, IMAGES_SHOWN] = [8, 12]; // of a word
  const FILTERS = { "": "all", with: "with a code", without: "without a code" };
  const SORTS = {
    word: (a, b) => (a.word < b.word ? -1 : 1),
    images: (a, b) => b.images - a.images,
    lift: (a, b) => (b.codes[0]?.low ?? 0) - (a.codes[0]?.low ?? 0),
  };

  // Thousands of rows: each is a copy of one, and is filled when it comes near the window.
  const makeRows = (words, wall) => {
    const original = element("a");
    const rows = new Map();
    const fillWhenNear = explorer.whenNear((row) => fillRow(row, rows.get(row), wall));
    return words.map((word) => {
      const row = original.cloneNode();
      row.className = word.codes.length ? "word" : "word unassociated";
      row.href = explorer.address("words", word.word);
      row.dataset.word = word.word;
      row.setAttribute("aria-label", `${word.word}, ${formatPlural(word.codes.length, "code")}`);
      rows.set(row, word);
      fillWhenNear(row);
      return row;
    });
  };
  const fillRow = (row, { word, images, codes }, wall) => {
    const crops = codes.slice(0, 4).map(({ code }) => explorer.codeCrop(wall, code, 40));
    const counts = [formatPlural(images, "image"), codes.length ? formatPlural(codes.length, "code") : "no code"];
    row.removeAttribute("aria-label");
    row.append(
      element("span", { class: "word-crops" }, crops),
      element("span", { class: "word-text foreign", dir: "auto" }, word),
      element("span", { class: "word-counts" }, counts.map((text) => element("span", {}, text))),
    );
  };

  const showAll = (root, words, wall, parameters, meta) => {
    const state = {
      filter: Object.hasOwn(FILTERS, parameters.get("filter")) ? parameters.get("filter") : "",
      sort: Object.hasOwn(SORTS, parameters.get("sort")) ? parameters.get("sort") : "word",
      search: parameters.get("search") ?? "",
    };
    const spellings = words.map(({ word }) => word);
    const made = makeRows(words, wall);
    const rows = new Map(words.map((word, number) => [word, made[number]]));
    const list = element("div", { class: "words", dataset: { content: "" } });
    const found = element("span", { class: "found", role: "status" });
    const fill = () => {
      const wanted = state.search.trim().toLowerCase();
      const shown = words
        .filter(
          ({ word, codes, forms }) =>
            (state.filter === "" || (state.filter === "with") === codes.length > 0) &&
            [word, ...forms].some((form) => form.includes(wanted)),
        )
        .sort(SORTS[state.sort]);
      list.replaceChildren(...shown.map((word) => rows.get(word)));
      const all = shown.length < words.length ? ` of ${formatCount(words.length)}` : "";
      found.textContent = `${formatPlural(shown.length, "word")}${all}`;
      if (shown.length) return;
      const nearest = explorer.nearestWords(wanted, spellings);
      list.append(element("p", { class: "nothing" }, "No word is like that.", nearest));
    };
    const change = (name, value) => {
      state[name] = value;
      fill();
      explorer.replaceAddress("words", "", { ...state, sort: state.sort === "word" ? "" : state.sort });
    };
    const search = element("input", {
      type: "search",
      value: state.search,
      placeholder: "any word",
      input: ({ target }) => change("search", target.value),
      keydown: ({ key }) => key === "Enter" && list.querySelector("a")?.click(),
    });
    const sorts = Object.keys(SORTS).map((value) => [value, value]);
    fill();
    root.append(
      element("h1", {}, "Words"),
      explorer.lead(
        "Words of the captions, and the codes with whose images they are associated: more frequent there " +
          "than chance explains. ",
        "No label and no other model names a code: only what people wrote about its images.",
      ),
      element(
        "div",
        { class: "controls" },
        element("label", {}, "search ", search),
        explorer.choices("words shown", Object.entries(FILTERS), state.filter, (value) => change("filter", value)),
        explorer.selectBox("sort by", sorts, state.sort, (value) => change("sort", value)),
        found,
      ),
      list,
      explorer.licenceLine(meta),
    );
  };

  // Images in which codes occur, the nearest of each code in turn; `onPoint` is called with a code, null for none.
  const imagesOf = async (codes, label, onPoint) => {
    const loaded = await Promise.all(codes.slice(0, MOST_CODES).map(explorer.loadCode));
    const lists = loaded.map(({ nearest, random }) => (nearest.length ? nearest : random));
    const inTurn = Array.from({ length: IMAGES_SHOWN }, (_, place) => lists.map((list) => list[place]?.[0])).flat();
    const numbers = [...new Set(inTurn.filter((number) => number !== undefined))].slice(0, IMAGES_SHOWN);
    return Promise.all(
      numbers.map(async (number) => {
        const image = await explorer.loadImage(number);
        // Of several levels the one that has the first code.
        const size = image.rows * image.columns;
        const level = Math.floor(Math.max(0, image.index.findIndex((code) => codes.includes(code))) / size);
        const index = image.index.slice(level * size, (level + 1) * size);
        const name = `image ${number}`;
        const view = explorer.imageWithPatches({ ...image, index }, explorer.imagePath(number), name, onPoint);
        const link = element("a", { href: explorer.address("image", String(number), { word: label }) }, name);
        return { light: view.light, root: element("div", {}, view.root, link) };
      }),
    );
  };

  const showWord = async (root, text, words, wall, meta) => {
    const isCalled = (form) => words.find((one) => one.word === form || one.forms.includes(form));
    const word = words.find((one) => one.word === text) ?? isCalled(text.toLowerCase());
    if (!word) {
      const nearest = explorer.nearestWords(text.toLowerCase(), words.map((one) => one.word));
      const told = explorer.foreignText(`There is no word "${text}" in the captions that were counted.`, "span");
      root.append(element("h1", {}, "No such word"), explorer.notice(told, nearest));
      return "No such word";
    }
    root.append(
      element(
        "div",
        { class: "title" },
        element("h1", { class: "foreign", dir: "auto" }, word.word),
        element("a", { class: "button", href: explorer.address("words") }, "all words"),
      ),
      explorer.lead(
        `In the captions of ${formatPlural(word.images, "image")} of ${formatCount(meta.num_images)}.`,
        word.codes.length
          ? ` Lit are the patches of the codes associated with it. Beside each code: how many times as often as ` +
              "elsewhere its images have the word, with an interval; the dashed line is 1."
          : null,
      ),
    );
    if (!word.codes.length) {
      root.append(
        explorer.notice(
          "No code is associated with this word: in no code's images is it more frequent than elsewhere " +
            "by more than chance makes.",
        ),
      );
    }
    const all = word.codes.map(({ code }) => code);
    const light = (code) => {
      for (const image of images) image.light(code === null ? all : [code]);
      for (const card of cards) card.classList.toggle("lit", card.dataset.code === String(code));
    };
    const images = await imagesOf(all, word.word, light);
    const greatest = word.codes.reduce((most, { high }) => Math.max(most, high), 4);
    const cards = word.codes.map((row) =>
      element(
        "a",
        {
          class: "word-code",
          href: explorer.address("code", String(row.code)),
          dataset: { code: row.code },
          pointerenter: () => light(row.code),
          pointerleave: () => light(null),
          focus: () => light(row.code),
          blur: () => light(null),
        },
        explorer.codeCrop(wall, row.code, 112),
        element(
          "span",
          { class: "word-code-text" },
          element("strong", {}, `code ${explorer.codeName(row.code)}`),
          element("span", {}, `× ${formatNumber(row.lift, row.lift < 10 ? 2 : 3)}`),
          explorer.charts.interval({ ...row, value: row.lift, greatest, proven: row.low > 1 }),
          element(
            "span",
            { class: "hint" },
            `${formatCount(row.both)} of its ${formatPlural(row.images, "image")}`,
            ` (${formatPercent(row.both / row.images)})`,
          ),
        ),
      ),
    );
    light(null);
    root.append(
      element("div", { class: "word-images" }, images.map((image) => image.root)),
      element("div", { class: "word-codes" }, cards),
      explorer.licenceLine(meta),
    );
    return word.word;
  };

  explorer.pages.set("words", {
    title: "Words",
    show: async (root, argument, parameters, meta) => {
      if (!meta.has_captions) {
        root.append(
          element("h1", {}, "Words"),
          explorer.notice("These images have no captions, so nothing names the codes."),
        );
        return "Words";
      }
      const [words, wall] = await Promise.all([explorer.load("words"), explorer.loadWall()]);
      if (argument !== "") return showWord(root, argument, words, wall, meta);
      return showAll(root, words, wall, parameters, meta);
    },
  });
})();
