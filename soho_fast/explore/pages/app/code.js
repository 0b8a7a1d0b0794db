"use strict";

// A code: its occurrences, words, and neighbours.
(() => {
  const { element, card, charts, formatCount, formatNumber, formatPercent, formatPlural } = explorer;
  const FIRST_SHOWN = 12;

  const KINDS = [
    ["nearest", "Nearest", "The features that lie closest to the code: what it is at its purest."],
    ["quantiles", "From near to far", "Evenly from the nearest patch to the farthest: how wide it reaches."],
    ["random", "At random", "Drawn evenly from all its patches: what it mostly is."],
  ];

  const codeAddress = (code) => explorer.address("code", String(code));

  // Patches of a code with their surroundings, as links to their images.
  const tilesOf = (code, list, hasDistances = true) =>
    list.map((occurrence) => {
      const [image, row, column, distance] = occurrence;
      const where = `image ${image}, row ${row + 1}, column ${column + 1}`;
      return element(
        "a",
        {
          class: "occurrence",
          href: explorer.address("image", String(image), { code: code.code }),
          "aria-label":
            `${where}, ` + (hasDistances ? `distance ${formatNumber(distance)}` : "drawn at random"),
        },
        explorer.crop(occurrence, null, explorer.around),
        hasDistances ? formatNumber(distance) : null,
      );
    });

  // The patches of a kind, each from another image.
  const occurrences = (code, kind, heading, meaning, meta) => {
    const list = code[kind];
    if (!list.length) return null;
    const tiles = tilesOf(code, list, meta.has_distances);
    const row = element("div", { class: "occurrences" });
    const more = explorer.fold(row, tiles, FIRST_SHOWN);
    return element(
      "section",
      { class: "kind", "aria-label": heading, dataset: { kind } },
      element("h3", {}, heading),
      element("p", { class: "hint" }, meaning),
      row,
      more,
    );
  };

  // The words that the code is associated with, and a few of the others.
  const wordTable = (rows) => {
    const greatest = 1.1 * rows.reduce((most, { high }) => Math.max(most, high), 4);
    const lines = rows.map((row) => {
      const { word, both, images, lift, low } = row;
      const counts = `${both} of the ${images} images whose captions have the word have the code`;
      return element(
        "tr",
        { class: low > 1 ? null : "unproven" },
        element("th", { scope: "row" }, explorer.wordLink(word)),
        element("td", { class: "number", title: counts }, `${formatCount(both)} of ${formatCount(images)}`),
        element("td", { class: "number" }, `× ${formatNumber(lift, lift < 10 ? 2 : 3)}`),
        element("td", {}, charts.interval({ ...row, value: lift, greatest, proven: low > 1 })),
      );
    });
    const first = Math.max(FIRST_SHOWN, rows.filter(({ low }) => low > 1).length);
    const body = element("tbody");
    const more = explorer.fold(body, lines, first);
    return [explorer.table("lifts", ["word", "its images with the code", "lift", "interval"], body), more];
  };

  const wordCard = (code, meta) => {
    if (!meta.has_captions) return null;
    const { level, num_tests: numTests } = meta.interval;
    return card(
      "Words",
      "Lift: how many times likelier a word is in the captions of images that have this code than in all captions. " +
        "Intervals at " +
        `${formatPercent(level)}, corrected for ${formatPlural(numTests, "test")}; the dashed line is 1, as often as ` +
        "elsewhere, and what is grey may be chance.",
      code.words.length ? wordTable(code.words) : element("p", { class: "nothing" }, "No word is common enough here."),
    );
  };

  const codeList = (entries, own, wall, tell) =>
    element(
      "div",
      { class: "code-list" },
      entries.map((entry) =>
        element(
          "a",
          { href: codeAddress(entry.code) },
          explorer.codeCrop(wall, entry.code, 72),
          element("span", { class: "tile-word", dir: "auto" }, wall.name[entry.code] ?? ""),
          element("span", { class: "tile-number" }, entry.code === own ? "itself" : explorer.codeName(entry.code)),
          element("span", { class: "tile-value" }, tell(entry)),
        ),
      ),
    );

  const nextCard = (code, wall, meta) =>
    code.next.length > 0 &&
    card(
      "Codes of the next level",
      `A patch has a code of each of the ${meta.num_levels} levels. These of the next level most of its patches ` +
        "have: their share of its tokens.",
      codeList(code.next, code.code, wall, ({ tokens }) => formatPercent(tokens / code.tokens)),
    );

  const decoded = (code, meta) =>
    meta.has_decoded
      ? element(
          "figure",
          { class: "decoded" },
          element("img", { src: explorer.decodedPath(code), alt: "what the decoder makes of this code alone" }),
          element("figcaption", { class: "hint" }, "decoded"),
        )
      : null;

  // Of a code: its word, or the name that it was given, and its number.
  const titleOf = (code, wall) => {
    const [name, number] = [wall.name[code], explorer.codeName(code)];
    return name === null ? [`Code ${number}`] : [name, `code ${number}`];
  };

  const facts = (entries) => {
    const made = entries.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    return element("dl", { class: "facts" }, made);
  };

  const distanceCard = (code, meta) => {
    if (!meta.has_distances) return null;
    const hint = "How far the features of its patches lie from the code, in the codebook's own units.";
    const label = `tokens of code ${code.code} by distance`;
    return card("Distances", hint, charts.histogram({ counts: code.histogram, edges: meta.histogram_edges, label }));
  };

  const positionCard = (code, meta) =>
    card(
      "Positions",
      "Where in the images it lies; the stronger the colour, the more tokens.",
      charts.heatMap({
        values: code.positions,
        rows: meta.position_rows,
        columns: meta.position_columns,
        label: `tokens of code ${code.code} by position`,
        name: "tokens",
      }),
    );

  const besideCard = (code, wall) => {
    const tell = ({ count, lift }) => `${formatCount(count)}, × ${formatNumber(lift, 2)}`;
    return card(
      "Beside it in images",
      "Codes of the patches next to its patches: how often, and how many times more often than expected from their " +
        "usage.",
      code.neighbours.length
        ? codeList(code.neighbours, code.code, wall, tell)
        : element("p", { class: "nothing" }, "None."),
    );
  };

  const nearCard = (code, wall) =>
    code.near.length > 0 &&
    card(
      "Nearest in the codebook",
      "Codes whose vectors lie closest, and how far; at distance 0 they are the same.",
      codeList(code.near, code.code, wall, ({ distance }) => formatNumber(distance)),
    );

  const showUnused = (root, code, wall) => {
    root.append(
      explorer.notice(
        "This code is unused: no patch of any image here is nearest to it. It has no images, " +
          "words or neighbours.",
      ),
      element("div", { class: "cards" }, element("div", {}, nearCard(code, wall))),
    );
  };

  const showLive = (root, code, wall, meta) => {
    const number = code.code;
    const says = wall.word[number];
    const [share, ofAll] = [wall.precision[number], wall.precision[number] / wall.lift[number]].map(formatPercent);
    const meaning =
      says === null
        ? ["It is associated with no word of the captions."]
        : [
            "Its best word is ",
            explorer.wordLink(says),
            `: it is named in the captions of ${share} of its images (${ofAll} of all images).`,
          ];
    const distances = `${formatNumber(wall.mean_distance[number])} ± ${formatNumber(wall.spread[number], 2)}`;
    root.append(
      element(
        "div",
        { class: "portrait" },
        element(
          "a",
          {
            href: explorer.address("image", String(wall.medoid[number][0]), { code: number }),
            "aria-label": "the image of its most typical patch",
          },
          explorer.whole(wall.medoid[number], 240),
        ),
        decoded(number, meta),
        element(
          "div",
          {},
          element("p", { class: "meaning" }, meaning),
          facts([
            ["tokens", formatCount(code.tokens)],
            ["images", formatCount(code.images)],
            ["rank by usage", `${formatCount(code.rank)} of ${formatCount(meta.num_codes / meta.num_levels)}`],
            ["share of tokens", formatPercent(code.tokens / tokensOfLevel(number, wall, meta))],
            ...(meta.has_distances ? [["distance of its patches", distances]] : []),
          ]),
        ),
      ),
      element(
        "section",
        { "aria-label": "occurrences" },
        element("h2", {}, "Where it occurs"),
        element(
          "p",
          { class: "hint" },
          meta.has_distances
            ? "Each piece is from another image, its patch outlined, its distance below. The nearest " +
                "alone mislead: they look purer than the code is. "
            : "Each piece is from another image, its patch outlined. ",
          "A click shows the whole image with all its patches of this code.",
        ),
        KINDS.map(([kind, heading, meaning]) => occurrences(code, kind, heading, meaning, meta)),
      ),
      element(
        "div",
        { class: "cards" },
        element("div", {}, wordCard(code, meta), nextCard(code, wall, meta), besideCard(code, wall)),
        element("div", {}, distanceCard(code, meta), positionCard(code, meta), nearCard(code, wall)),
      ),
    );
  };

  const tokensOfLevel = (code, wall, meta) => {
    const level = Math.floor((code * meta.num_levels) / meta.num_codes) + 1;
    return wall.tokens.reduce((sum, tokens, other) => sum + (explorer.isOfLevel(other, level) ? tokens : 0), 0);
  };

  explorer.pages.set("code", {
    title: "Code",
    inHeader: false,
    show: async (root, argument, parameters, meta) => {
      const number = explorer.codeNumber(argument);
      const last = explorer.codeName(meta.num_codes - 1);
      if (number === null)
        throw new Error(`code: expected a number from ${explorer.codeName(0)} to ${last}, got "${argument}"`);
      const [code, wall] = await Promise.all([explorer.loadCode(number), explorer.loadWall()]);
      const walk = explorer.walk("code", number, meta.num_codes);
      const [name, ...beside] = titleOf(number, wall);
      const heading = element("h1", { dir: "auto" }, name, beside.map((part) => [" ", element("small", {}, part)]));
      root.append(element("div", { class: "title" }, heading, walk));
      if (code.tokens === 0) showUnused(root, code, wall);
      else showLive(root, code, wall, meta);
      root.append(explorer.licenceLine(meta));
      return titleOf(number, wall).join(", ");
    },
  });
})();
