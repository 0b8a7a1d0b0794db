"use strict";

// The first page: a tile a code.
(() => {
  const { element, formatCount, formatNumber, formatPercent, formatPlural } = explorer;

  // What to sort by: its words, a column of the wall (null goes last; without one the codes themselves), whether the
  // greatest comes first, and how the number is said under the tile.
  const SORTS = {
    lift: { words: "surest word first", column: "lift_low", down: true, tell: (n) => `lift ≥ ${formatNumber(n, 2)}` },
    usage: { words: "usage", column: "tokens", down: true, tell: (n) => formatPlural(n, "token") },
    precision: { words: "precision of the word", column: "precision", down: true, tell: formatPercent },
    spread: { words: "spread, narrow first", column: "spread", tell: (n) => `± ${formatNumber(n, 2)}` },
    near: {
      words: "near-duplicates first",
      column: "near_distance",
      tell: (n, wall, code) => `${formatNumber(n, 2)} to ${explorer.codeName(wall.near_code[code])}`,
    },
    number: { words: "number", tell: () => "" },
  };
  const valuesOf = (wall, { column }) => wall[column] ?? wall.tokens.map((_, code) => code);
  const SHOWN = { "": "with surroundings", alone: "patches alone", decoded: "decoded" };
  const USE = { "": "all", active: "active", unused: "unused" };

  const sortedCodes = (wall, sort) => {
    const values = valuesOf(wall, sort);
    const sign = sort.down ? -1 : 1;
    return wall.tokens
      .map((_, code) => code)
      .sort((a, b) => {
        const byUsage = wall.tokens[b] - wall.tokens[a] || a - b;
        if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || byUsage;
        return sign * (values[a] - values[b]) || byUsage;
      });
  };

  const saidOf = (wall, code) => {
    if (wall.tokens[code] === 0) return "unused";
    return wall.name[code] ?? `${formatPlural(wall.tokens[code], "token")}, no word`;
  };

  // Thousands of tiles: each is a copy of one, and is filled when it comes near the window.
  const makeTiles = (wall) => {
    const original = element("a", { tabindex: "-1" });
    return wall.tokens.map((tokens, code) => {
      const tile = original.cloneNode();
      tile.className = tokens === 0 ? "tile unused" : "tile";
      tile.href = explorer.address("code", String(code));
      tile.dataset.code = code;
      tile.setAttribute("aria-label", `code ${explorer.codeName(code)}, ${saidOf(wall, code)}`);
      return tile;
    });
  };
  const fillTile = (tile, wall, shown) => {
    const code = Number(tile.dataset.code);
    tile.removeAttribute("aria-label");
    tile.replaceChildren(
      shown === "decoded"
        ? element("img", { class: "crop", src: explorer.decodedPath(code), alt: "", loading: "lazy" })
        : explorer.codeCrop(wall, code, 120, shown === "alone" ? 0 : explorer.around),
      element("span", { class: "tile-word", dir: "auto" }, wall.tokens[code] === 0 ? "unused" : wall.name[code]),
      wall.medoid[code] ? explorer.whole(wall.medoid[code], 38) : "",
      element("span", { class: "tile-number" }, explorer.codeName(code)),
      element("span", { class: "tile-value" }, tile.dataset.value),
    );
  };

  // Arrows go from tile to tile; one stop for the tabulator.
  const walkByKeys = (grid) => {
    const columnsOf = (tiles) => {
      const top = tiles[0].offsetTop;
      const end = tiles.findIndex((tile) => tile.offsetTop !== top);
      return end < 0 ? tiles.length : end;
    };
    grid.addEventListener("focusin", ({ target }) => {
      grid.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
      target.tabIndex = 0;
    });
    grid.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const tiles = [...grid.children];
      const place = tiles.indexOf(event.target);
      if (place < 0 || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const columns = columnsOf(tiles);
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      tiles[place + step]?.focus();
    });
  };

  const measures = (meta) => {
    const shown = Object.entries(meta.measures).map(
      ([name, value]) => `${name}: ${name.startsWith("share") ? formatPercent(value) : formatNumber(value)}`,
    );
    const associated =
      " A code is associated with a word that the captions of its images have more often than chance " +
      "explains.";
    if (!shown.length) return "";
    return element("p", { class: "measures" }, `${shown.join("; ")}.`, meta.has_captions && associated);
  };

  // On a phone the explanation is folded, so that the first tiles are seen.
  const summary = (meta) => {
    const unused = meta.num_codes - meta.num_active;
    const images = formatPlural(meta.num_images, "image");
    return [
      explorer.lead(
        element("strong", {}, formatCount(meta.num_codes)),
        ` codes${unused ? `, ${formatCount(unused)} of them unused: no patch here has them` : ", all in use"};`,
        ` ${images},`,
        ` ${formatPlural(meta.num_tokens, "token")}.`,
      ),
      element(
        "details",
        { open: !matchMedia("(max-width: 720px)").matches },
        element("summary", {}, "What the tiles show"),
        explorer.lead(
          "The model describes each image by a grid of numbers: each number, a code, stands for what a small patch " +
            "of the image looks like. A tile shows the most typical patch of a code, outlined, and below it where in " +
            "its image it lies. ",
          meta.has_captions &&
            "The word is the one most specific to the captions of the code's images; “lift ≥ 9” says that it is at " +
              "least nine times likelier there than in all captions. ",
          meta.num_levels > 1
            ? `A patch has a code of each of ${meta.num_levels} levels: code 2.17 is code 17 of the second level. `
            : null,
        ),
        measures(meta),
      ),
    ];
  };

  // The table of the codes shown, for spreadsheets: fields in quotes; what a spreadsheet would compute stays a text.
  const csvOf = (wall, codes) => {
    const field = (value) => {
      const text = value === null ? "" : String(value);
      const computed = /^[=+@\t\r-]/.test(text) && !Number.isFinite(Number(text));
      return `"${computed ? "'" : ""}${text.replaceAll('"', '""')}"`;
    };
    const ofWord = ["label", "word", "lift", "lift_low", "lift_high", "precision"];
    const columns = ["tokens", "images", ...ofWord, "mean_distance"];
    // Level and code apart: to a spreadsheet 1.1 and 1.10 are one number.
    const nameOf = (code) => explorer.codeName(code).split(".");
    const named = codes.map((code) => [...nameOf(code), ...columns.map((name) => wall[name][code])]);
    const heads = nameOf(0).length > 1 ? ["level", "code"] : ["code"];
    return [[...heads, ...columns], ...named].map((row) => row.map(field).join(",")).join("\r\n");
  };
  const saveTable = (wall, codes) => {
    const address = URL.createObjectURL(new Blob([`\ufeff${csvOf(wall, codes)}`], { type: "text/csv" }));
    element("a", { href: address, download: "codes.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  };

  explorer.pages.set("wall", {
    title: "Wall",
    show: async (root, argument, parameters, meta) => {
      const wall = await explorer.loadWall();
      const known = Object.keys(SORTS).filter((name) => valuesOf(wall, SORTS[name]).some((value) => value !== null));
      const first = known.includes("lift") ? "lift" : "usage";
      const state = {
        level: explorer.levelOf(parameters, meta, null),
        sort: known.includes(parameters.get("sort")) ? parameters.get("sort") : first,
        show: Object.hasOwn(USE, parameters.get("show")) ? parameters.get("show") : "",
        word: parameters.get("word") ?? "",
        patches: Object.hasOwn(SHOWN, parameters.get("patches")) ? parameters.get("patches") : "",
      };

      const tiles = makeTiles(wall);
      const fillOne = (tile) => fillTile(tile, wall, state.patches);
      const fillWhenNear = explorer.whenNear(fillOne);
      tiles.forEach(fillWhenNear);
      const grid = element("div", { class: "wall", role: "group", "aria-label": "codes", dataset: { content: "" } });
      const found = element("span", { class: "found", role: "status" });
      walkByKeys(grid);

      const words = wall.word.filter((word) => word !== null);
      const likely = (wanted) => (meta.has_captions && wanted !== "" ? explorer.nearestWords(wanted, words) : null);
      let codesShown = [];
      const fill = () => {
        const sort = SORTS[state.sort];
        const values = valuesOf(wall, sort);
        const isUsed = (code) => wall.tokens[code] > 0;
        const isShown = (code) => state.show === "" || (state.show === "active") === isUsed(code);
        const wanted = state.word.trim().toLowerCase();
        const codes = sortedCodes(wall, sort).filter(
          (code) =>
            explorer.isOfLevel(code, state.level) &&
            isShown(code) &&
            (wanted === "" || (wall.name[code] ?? "").toLowerCase().includes(wanted)),
        );
        codesShown = codes;
        for (const code of codes) {
          const value = values[code];
          const isTold = value !== null && (wall.tokens[code] > 0 || state.sort === "near" || state.sort === "number");
          tiles[code].dataset.value = isTold ? sort.tell(value, wall, code) : "";
          if (tiles[code].lastChild) tiles[code].lastChild.textContent = tiles[code].dataset.value;
          tiles[code].tabIndex = -1;
        }
        grid.replaceChildren(...codes.map((code) => tiles[code]));
        if (codes.length) tiles[codes[0]].tabIndex = 0;
        found.textContent =
          codes.length === wall.tokens.length
            ? ""
            : `${formatPlural(codes.length, "code")} of ${formatCount(wall.tokens.length)}`;
        if (!codes.length) grid.append(element("p", { class: "nothing" }, "No code is like that.", likely(wanted)));
      };
      const change = (name, value) => {
        state[name] = value;
        fill();
        explorer.replaceAddress("wall", "", { ...state, sort: state.sort === first ? "" : state.sort });
      };

      const wordBox = element("input", {
        type: "search",
        value: state.word,
        placeholder: "any word",
        input: ({ target }) => change("word", target.value),
      });
      const shown = Object.entries(SHOWN).filter(([name]) => name !== "decoded" || meta.has_decoded);
      const changeShown = (value) => {
        change("patches", value);
        tiles.filter((tile) => tile.firstChild).forEach(fillOne);
      };
      const sorts = known.map((name) => [name, SORTS[name].words]);
      fill();
      root.append(
        element("h1", {}, "The dictionary"),
        ...summary(meta),
        element(
          "div",
          { class: "controls" },
          explorer.selectBox("sort by", sorts, state.sort, (value) => change("sort", value)),
          explorer.choices("codes shown", Object.entries(USE), state.show, (value) => change("show", value)),
          meta.has_captions ? element("label", {}, "word ", wordBox) : null,
          explorer.levelBox(meta, state.level, (level) => change("level", level), "all"),
          explorer.choices("what tiles show", shown, state.patches, changeShown),
          element("button", { type: "button", click: () => saveTable(wall, codesShown) }, "save as CSV"),
          found,
        ),
        grid,
        explorer.licenceLine(meta),
      );
    },
  });
})();
