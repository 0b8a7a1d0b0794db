"use strict";

// A cell of a picture as a square tile. occurrence: [picture, row, column, distance, rows, columns]; `size` in pixels;
// `around`: how many cells on each side are shown too, the cell itself outlined.
explorer.crop = (occurrence, size, around = 0) => {
  const [picture, row, column, , rows, columns] = occurrence;
  const cell = size / (2 * around + 1);
  const tile = explorer.element("div", {
    class: "crop",
    style: {
      width: `${size}px`,
      height: `${size}px`,
      backgroundImage: `url("${explorer.picturePath(picture)}")`,
      backgroundSize: `${columns * cell}px ${rows * cell}px`,
      backgroundPosition: `${(around - column) * cell}px ${(around - row) * cell}px`,
    },
  });
  if (around > 0) {
    const position = `${around * cell}px`;
    const style = { left: position, top: position, width: `${cell}px`, height: `${cell}px` };
    tile.append(explorer.element("div", { class: "crop-cell", style }));
  }
  return tile;
};
