"use strict";

(() => {
  const { element } = explorer;

  // Pictures are asked for when they come near the window: a wall has thousands.
  const showWhenNear = explorer.whenNear((tile) => {
    tile.style.backgroundImage = `url("${tile.dataset.picture}")`;
  });

  // A cell of a picture as a square tile. occurrence: [picture, row, column, distance, rows, columns]; `size` in
  // pixels, null to fill the width it is given; `around`: how many cells on each side are shown too, the cell
  // outlined. At the edge of the picture the tile shows more of the other side.
  explorer.crop = (occurrence, size, around = 0) => {
    const [picture, row, column, , rows, columns] = occurrence;
    const span = 2 * around + 1;
    const start = (place, length) =>
      around > 0 ? Math.max(0, Math.min(place - around, length - span)) : Math.min(place, length);
    const [top, left] = [start(row, rows), start(column, columns)];
    // A percentage of what the picture is larger than the tile.
    const percent = (place, length) => (length === span ? 0 : (100 * place) / (length - span));
    const tile = element("div", {
      class: "crop",
      dataset: { picture: explorer.picturePath(picture) },
      style: {
        width: size === null ? "100%" : `${size}px`,
        backgroundSize: `${(100 * columns) / span}% ${(100 * rows) / span}%`,
        backgroundPosition: `${percent(left, columns)}% ${percent(top, rows)}%`,
      },
    });
    if (around > 0) {
      const place = (number) => `${(100 * number) / span}%`;
      const style = { left: place(column - left), top: place(row - top), width: place(1), height: place(1) };
      tile.append(element("div", { class: "crop-cell", style }));
    }
    showWhenNear(tile);
    return tile;
  };

  // What stands for a code: its medoid's cell, or an empty tile where it is dead.
  explorer.codeCrop = (wall, code, size, around = 0) =>
    wall.medoid[code]
      ? explorer.crop(wall.medoid[code], size, around)
      : element("div", { class: "crop crop-dead", style: { width: size === null ? "100%" : `${size}px` } });

  // A picture with its cells over it, as links to their codes.
  //   picture: {index, rows, columns, cells_high, cells_wide, width, height}, see bundle.py; `source`: address of the
  //   picture; `label`: what it shows, for those who do not see it.
  //   onPoint(code, cell): called with what the pointer or the focus is on, with (null, null) when it leaves. Where
  //   `index` is null no code is known of any cell, and the cells are no links.
  // Returns {root, cells, light, shade}: `cells` are the links, row by row, null where a cell has no code;
  //   light(code) lights the cells of a code, of none where it is null; shade(values) paints one value of 0 to 1 a
  //   cell, or nothing where it is null.
  explorer.pictureWithCells = (picture, source, label, onPoint = () => {}) => {
    const { index, rows, columns, cells_high: high, cells_wide: wide } = picture;
    const root = element("div", {
      class: "cells",
      role: "group",
      "aria-label": label,
      // A high picture is made narrower, that more than a strip of it is seen at once.
      style: {
        aspectRatio: `${picture.width} / ${picture.height}`,
        maxWidth: `max(80px, ${(150 * picture.width) / picture.height}vh)`,
      },
    });
    root.append(element("img", { src: source, alt: label, width: picture.width, height: picture.height }));

    const cells = Array.from({ length: rows * columns }, (_, cell) => {
      const code = index ? index[cell] : null;
      if (index && (code === null || code === undefined)) return null;
      const row = Math.floor(cell / columns);
      const column = cell % columns;
      return element(index ? "a" : "div", {
        class: "cell",
        href: index ? explorer.address("code", String(code)) : null,
        tabindex: "-1",
        dataset: index ? { code, cell } : { cell },
        "aria-label": `${index ? `code ${code}, ` : ""}row ${row + 1}, column ${column + 1}`,
        style: {
          left: `${(100 * column) / wide}%`,
          top: `${(100 * row) / high}%`,
          width: `${100 / wide}%`,
          height: `${100 / high}%`,
        },
      });
    });
    const present = cells.filter((cell) => cell !== null);
    root.append(...present);
    if (present.length) present[0].tabIndex = 0;

    const light = (code) => {
      root.classList.toggle("has-light", code !== null);
      for (const cell of present) cell.classList.toggle("lit", cell.dataset.code === String(code));
    };
    const shade = (values) => {
      root.classList.toggle("has-shade", values !== null);
      for (const cell of present) cell.style.setProperty("--shade", values ? values[cell.dataset.cell] : 0);
    };

    const point = (target) => {
      const cell = target.closest?.(".cell");
      if (cell) onPoint(index ? Number(cell.dataset.code) : null, Number(cell.dataset.cell));
      else onPoint(null, null);
    };
    // Not pointerover: a page that comes to lie under a pointer at rest is not pointed at.
    root.addEventListener("pointermove", ({ target }) => point(target));
    root.addEventListener("pointerdown", ({ target }) => point(target));
    root.addEventListener("pointerleave", () => onPoint(null, null));
    root.addEventListener("focusin", ({ target }) => point(target));
    root.addEventListener("focusout", () => onPoint(null, null));

    // One stop for the tabulator; arrows go from cell to cell.
    const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    root.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      const from = event.target.closest?.(".cell");
      if (!step || !from || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const start = Number(from.dataset.cell);
      const to = cells[start + step];
      const sameRow = Math.floor((start + step) / columns) === Math.floor(start / columns);
      if (!to || (Math.abs(step) === 1 && columns > 1 && !sameRow)) return;
      from.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
    return { root, cells, light, shade };
  };
})();
