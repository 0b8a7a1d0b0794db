"use strict";

// An image: its index map, captions, licence, and what masked visual modelling hides of it.
(() => {
  const { element, formatCount, formatPercent, formatPlural } = explorer;

  const FIRST_CHIPS = 24;

  const walk = (number, meta, code) => {
    const link = (rel, target, words) =>
      target < 0 || target >= meta.num_shown
        ? element("span", { class: "button", "aria-disabled": "true" }, words)
        : element("a", { class: "button", rel, href: explorer.address("image", String(target), { code }) }, words);
    return element(
      "nav",
      { class: "walk", "aria-label": `${explorer.noun}s` },
      link("prev", number - 1, "← previous"),
      link("next", number + 1, "next →"),
    );
  };

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

    const guessRows = patches.map(({ patch, guesses }) =>
      element(
        "li",
        {},
        element(
          "span",
          { class: "hint" },
          `row ${Math.floor(patch / image.columns) + 1}, column ${(patch % image.columns) + 1}`,
        ),
        element(
          "span",
          { class: "guesses" },
          guesses.map(([guess, probability]) =>
            element(
              "a",
              {
                class: guess === code ? "chip right" : "chip",
                href: explorer.address("code", String(guess)),
                title: wall.word[guess] ?? "",
              },
              explorer.codeCrop(wall, guess, 28),
              `${explorer.codeName(guess)} · ${formatPercent(probability)}`,
            ),
          ),
        ),
      ),
    );
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
    const [image, wall, server] = await Promise.all([
      explorer.loadImage(number),
      explorer.loadWall(),
      explorer.load("server"),
    ]);
    const asked = parameters.get("code");
    const lit = asked !== null && image.index.includes(Number(asked)) ? Number(asked) : null;
    // The level that is asked for, or that of the code.
    const size = image.rows * image.columns;
    const levelOfLit = lit === null ? 1 : 1 + Math.floor(image.index.indexOf(lit) / size);
    const level = explorer.levelOf(parameters, meta, levelOfLit);
    const index = image.index.slice((level - 1) * size, level * size);
    const counts = new Map(countsByCode(index));
    const source = explorer.imagePath(number);

    const status = element("p", { class: "status", role: "status" });
    const tell = (code) => {
      if (code === null) {
        status.replaceChildren(
          asked !== null && lit === null
            ? `No patch here has code ${explorer.codeName(asked)}.`
            : "Point at a patch to see its code and all other patches of it; a click opens the code.",
        );
        return;
      }
      status.replaceChildren(
        element("a", { href: explorer.address("code", String(code)) }, `code ${explorer.codeName(code)}`),
        element("span", { dir: "auto" }, says(wall, code)),
        ` · ${formatPlural(counts.get(code), "patch", "patches")} here`,
      );
    };
    const caption = image.captions.find((text) => text.trim() !== "");
    const title = `${explorer.isSound ? "Clip" : "Image"} ${number}`;
    const label = caption === undefined ? `${explorer.noun} ${number}` : caption.slice(0, 200);
    const show = (code) => {
      view.light(code);
      tell(code);
      for (const chip of made) chip.classList.toggle("lit", chip.dataset.code === String(code));
    };
    const view = explorer.imageWithPatches({ ...image, index }, source, label, (code) => show(code ?? lit));
    const nameOf = (patch) => explorer.codeName(Number(patch.dataset.code));
    view.patches.forEach((patch) => patch?.append(element("span", { class: "patch-code" }, nameOf(patch))));

    const made = [...counts].map(([code, count]) =>
      element(
        "a",
        {
          class: "chip",
          href: explorer.address("code", String(code)),
          dataset: { code },
          pointerenter: () => show(code),
          pointerleave: () => show(lit),
          focus: () => show(code),
          blur: () => show(lit),
        },
        explorer.codeCrop(wall, code, 28),
        element("span", { dir: "auto" }, `${explorer.codeName(code)} ${wall.name[code] ?? ""}`.trim()),
        count > 1 ? element("span", { class: "hint" }, `${count} patches`) : null,
      ),
    );
    const chips = element("div", { class: "chips" }, made.slice(0, FIRST_CHIPS));
    const more = element("button", { type: "button", class: "quiet" }, `show all ${made.length}`);
    more.addEventListener("click", () => chips.replaceChildren(...made));
    if (made.length > FIRST_CHIPS) chips.append(more);
    show(lit);

    const toggle = element("input", {
      type: "checkbox",
      checked: parameters.get("numbers") !== "no",
      change: ({ target }) => {
        view.root.classList.toggle("without-numbers", !target.checked);
        explorer.replaceAddress("image", String(number), { code: asked, numbers: target.checked ? "" : "no" });
      },
    });
    view.root.classList.toggle("without-numbers", explorer.isSound || !toggle.checked);
    if (explorer.isSound) view.root.style.minWidth = `${12 * image.columns}px`; // A long clip is scrolled.

    const captions = image.captions.length
      ? element(
          "ul",
          { class: "captions" },
          image.captions.map((caption) => explorer.foreignText(caption, "li")),
        )
      : element("p", { class: "nothing" }, "It has none.");
    root.append(
      element("div", { class: "title" }, element("h1", {}, title), walk(number, meta, asked)),
      element(
        "div",
        { class: "image-view" },
        element(
          "div",
          { class: "image-stage" },
          explorer.isSound ? element("div", { class: "strip" }, view.root) : view.root,
          status,
          explorer.isSound
            ? explorer.playButton("play the clip", [[number, 0, 1]])
            : element("label", { class: "choice-line" }, toggle, " numbers of the codes"),
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
          chips,
          element("h2", {}, "Origin"),
          element(
            "p",
            { class: "foreign", dir: "auto" },
            `${image.name}, of ${meta.sources[image.source]?.name ?? "an unknown data set"}; shown `,
            explorer.isSound ? "as its spectrogram." : "smaller.",
          ),
          explorer.licenceLine(meta, image.licences),
          server
            ? element(
                "a",
                { class: "button", href: explorer.address("ask", "", { image: number }) },
                `ask about this ${explorer.noun}`,
              )
            : null,
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
        "aria-label": `${explorer.noun} ${number}`,
      }),
    );
    links.forEach(fillWhenNear);
    const nouns = `${explorer.noun}s`;
    const title = explorer.isSound ? "Clips" : "Images";
    const rest = meta.num_images - meta.num_shown;
    root.append(
      element("h1", {}, title),
      element(
        "p",
        { class: "lead" },
        rest > 0
          ? `${formatCount(meta.num_shown)} of the ${formatCount(meta.num_images)} ${nouns} that statistics come from.`
          : `All ${formatCount(meta.num_images)} ${nouns} that statistics come from.`,
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
        throw new Error(`${explorer.noun}: expected a number from 0 to ${meta.num_shown - 1}, got "${argument}"`);
      }
      return showImage(root, Number(argument), parameters, meta);
    },
  });
})();
