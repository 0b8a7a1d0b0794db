"use strict";

(() => {
  const { element } = explorer;

  // Images are asked for when they come near the window: a wall has thousands.
  const showWhenNear = explorer.whenNear((tile) => {
    tile.style.backgroundImage = `url("${tile.dataset.image}")`;
  });

  // Where a tile of `span` patches begins around the one at `place`.
  const startOf = (place, length, span, around) =>
    around > 0 ? Math.max(0, Math.min(place + 0.5 - span / 2, length - span)) : Math.min(place, length);

  // A patch of an image as a square tile. occurrence: [image, row, column, distance, rows, columns]; `size` in
  // pixels, null to fill the width it is given; `around`: how many patches on each side are shown too, the patch
  // outlined. At the edge of the image the tile shows more of the other side.
  explorer.crop = (occurrence, size, around = 0) => {
    const [image, row, column, , rows, columns] = occurrence;
    const span = around > 0 ? Math.min(2 * around + 1, columns, rows) : 1;
    const left = startOf(column, columns, span, around);
    const top = startOf(row, rows, span, around);
    // A percentage of what the image is larger than the tile.
    const percent = (place, length, span) => (length === span ? 0 : (100 * place) / (length - span));
    const tile = element("div", {
      class: "crop",
      dataset: { image: explorer.imagePath(image) },
      style: {
        width: size === null ? "100%" : `${size}px`,
        backgroundSize: `${(100 * columns) / span}% ${(100 * rows) / span}%`,
        backgroundPosition: `${percent(left, columns, span)}% ${percent(top, rows, span)}%`,
      },
    });
    if (around > 0) {
      const place = (number) => `${(100 * number) / span}%`;
      const style = { left: place(column - left), top: place(row - top), width: place(1), height: place(1) };
      tile.append(element("div", { class: "crop-patch", style }));
    }
    showWhenNear(tile);
    return tile;
  };

  // The whole image of an occurrence, its patch lit, so many pixels wide or high, whichever is more.
  explorer.whole = ([image, row, column, , rows, columns], size) => {
    const ratio = columns / rows;
    const [left, top, width, height] = [column / columns, row / rows, 1 / columns, 1 / rows].map((n) => `${100 * n}%`);
    const tile = element(
      "div",
      {
        class: "crop whole",
        dataset: { image: explorer.imagePath(image) },
        style: { width: `${size * Math.min(1, ratio)}px`, aspectRatio: ratio },
      },
      element("div", { class: "crop-patch", style: { left, top, width, height } }),
    );
    showWhenNear(tile);
    return tile;
  };

  // What stands for a code: its medoid's patch, or an empty tile where it is unused.
  explorer.codeCrop = (wall, code, size, around = explorer.around) =>
    wall.medoid[code]
      ? explorer.crop(wall.medoid[code], size, around)
      : element("div", { class: "crop crop-unused", style: { width: size === null ? "100%" : `${size}px` } });

  // Returns a function from a code to its colour, the same in every image: hue by its direction from the middle of the
  // plane (PCA), lightness by how far away it lies. Codes of one word look nearly alike: an object is one region.
  // The surer the word, the stronger the colour; beside codes with words, those without are nearly grey.
  explorer.codeColours = (wall) => {
    const surest = new Map(); // word -> code
    wall.word.forEach((word, code) => {
      if (word !== null && !(wall.lift_low[surest.get(word)] >= wall.lift_low[code])) surest.set(word, code);
    });
    const most = wall.lift_low.reduce((greatest, low) => Math.max(greatest, low ?? 1), 1);
    return (code) => {
      const of = surest.get(wall.word[code]) ?? code;
      // Without a codebook: places that lie apart.
      const x = (wall.x[of] ?? (0.755 * of) % 1) - 0.5;
      const y = (wall.y[of] ?? (0.57 * of) % 1) - 0.5;
      const lightness = 46 + 28 * Math.min(1, 4 * (x * x + y * y)) + 12 * ((0.618 * code) % 1);
      const chroma = most > 1 ? 0.015 + (0.135 * Math.log(wall.lift_low[of] ?? 1)) / Math.log(most) : 0.14;
      const hue = (Math.atan2(y, x) * 180) / Math.PI + 180;
      return `oklch(${lightness.toFixed(1)}% ${chroma.toFixed(3)} ${hue.toFixed(1)})`;
    };
  };

  // An image with its patches over it, as links to their codes.
  //   image: {index, rows, columns, patches_high, patches_wide, width, height}, see bundle.py; `source`: address of the
  //   image, null for the patches alone; `label`: what it shows, for those who do not see it.
  //   onPoint(code): called with the code that the pointer is on, with null when it leaves.
  // Returns {root, patches, light}: `patches` are the links, row by row, null where a patch has no code;
  //   light(codes) lights the patches of some codes and returns how many, or shows all alike where it is null.
  explorer.imageWithPatches = (image, source, label, onPoint = () => {}) => {
    const { index, rows, columns, patches_high: high, patches_wide: wide } = image;
    const root = element("div", {
      class: source ? "patches" : "patches code-map",
      role: "group",
      "aria-label": label,
      // A high image is made narrower, that more than a strip of it is seen at once.
      style: {
        aspectRatio: `${image.width} / ${image.height}`,
        maxWidth: `max(80px, ${(150 * image.width) / image.height}vh)`,
      },
    });
    if (source) root.append(element("img", { src: source, alt: label, width: image.width, height: image.height }));

    const patches = Array.from({ length: rows * columns }, (_, patch) => {
      const code = index[patch] ?? null;
      if (code === null) return null;
      const row = Math.floor(patch / columns);
      const column = patch % columns;
      return element("a", {
        class: "patch",
        href: explorer.address("code", String(code)),
        tabindex: "-1",
        dataset: { code, patch },
        "aria-label": `code ${explorer.codeName(code)}, row ${row + 1}, column ${column + 1}`,
        style: {
          left: `${(100 * column) / wide}%`,
          top: `${(100 * row) / high}%`,
          width: `${100 / wide}%`,
          height: `${100 / high}%`,
        },
      });
    });
    const present = patches.filter((patch) => patch !== null);
    root.append(...present);

    const light = (codes) => {
      root.classList.toggle("has-light", codes !== null);
      const isLit = (patch) => !!patch && !!codes?.includes(Number(patch.dataset.code));
      for (const patch of present) {
        // Lines only where the next patch is not lit too.
        const number = Number(patch.dataset.patch);
        const [isFirst, isLast] = [number % columns === 0, number % columns === columns - 1];
        const beside = [number - columns, isLast ? -1 : number + 1, number + columns, isFirst ? -1 : number - 1];
        const widths = beside.map((other) => (isLit(patches[other]) ? 0 : "2.5px")).join(" ");
        patch.style.borderWidth = isLit(patch) ? widths : "";
        patch.classList.toggle("lit", isLit(patch));
      }
      return present.filter(isLit).length;
    };
    const point = ({ target }) => {
      const patch = target.closest?.(".patch");
      onPoint(patch ? Number(patch.dataset.code) : null);
    };
    // Not pointerover: a page that comes to lie under a pointer at rest is not pointed at.
    root.addEventListener("pointermove", point);
    root.addEventListener("pointerdown", point);
    root.addEventListener("pointerleave", () => onPoint(null));
    return { root, patches, light };
  };
})();
