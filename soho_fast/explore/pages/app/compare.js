"use strict";

// What became of the codes of another explorer, by the patches that have both.
(() => {
  const { element, formatCount, formatNumber, formatPercent } = explorer;
  const AT_FIRST = 200;

  const KINDS = {
    split: "Several codes are mostly parts of it now.",
    merged: "It is now mostly part of a code that others are part of too.",
    lost: "No code stands for it any more.",
    new: "Codes that stand for none of the other explorer.",
    moved: "It and its partner share fewer than half of the patches that either has.",
    stable: "It and its partner share half or more of the patches that either has.",
  };

  const figureTable = (figures, first) => {
    const cell = (value) => element("td", { class: "number" }, formatNumber(value));
    const rows = figures.map(([name, one, other]) =>
      element("tr", {}, element("th", { scope: "row" }, name), cell(one), cell(other)),
    );
    return explorer.table("lifts", ["", first, "this explorer"], element("tbody", {}, rows));
  };

  const show = async (root, argument, parameters, meta) => {
    const [compared, wall] = await Promise.all([explorer.load("compare"), explorer.loadWall()]);
    const levelCodes = meta.num_codes / meta.num_levels;
    const [[, levelsOfFirst]] = compared.figures;
    const nameOf = (level, code) => (levelsOfFirst > 1 ? `${level}.${code}` : `${code}`);
    const tile = (crop, name, value) => [
      crop,
      element("span", { class: "tile-number" }, name),
      element("span", { class: "tile-value" }, value),
    ];
    const rowOf = ({ level, kind, first, tokens, overlap, to, tile: patch }) => {
      const crop = patch
        ? explorer.crop(patch, 72, explorer.around)
        : element("div", { class: "crop crop-unused", style: { width: "72px" } });
      const before =
        first === null ? null : element("div", {}, tile(crop, nameOf(level, first), formatCount(tokens)));
      const links = to.map(([code, both]) => {
        const number = (level - 1) * levelCodes + code;
        const share = tokens ? formatPercent(both / tokens) : formatCount(both);
        const name = explorer.codeName(number);
        return element(
          "a",
          { href: explorer.address("code", String(number)), "aria-label": `code ${name}, ${share}` },
          tile(explorer.codeCrop(wall, number, 72), name, share),
        );
      });
      const note = kind === "stable" || kind === "moved" ? `overlap ${formatPercent(overlap)}` : "";
      return element(
        "li",
        { class: "code-list", dataset: { kind, first } },
        before,
        element("span", { class: "hint" }, "→ ", note),
        links.length ? links : element("span", { class: "hint" }, "spread over many codes"),
      );
    };

    const rowsOf = (kind) => compared.rows.filter((row) => row.kind === kind);
    const kinds = Object.keys(KINDS).filter((kind) => rowsOf(kind).length);
    const list = element("ul", { class: "plain", dataset: { content: "" } });
    const hint = element("p", { class: "hint" });
    const fill = (kind) => {
      const count = ({ tokens, to }) => tokens || to[0][1];
      const rows = rowsOf(kind).sort((a, b) => count(b) - count(a));
      hint.textContent = `${KINDS[kind]}${rows.length > AT_FIRST ? ` The ${AT_FIRST} most frequent.` : ""}`;
      list.replaceChildren(...rows.slice(0, AT_FIRST).map(rowOf));
    };
    const chosen = kinds.includes(parameters.get("kind")) ? parameters.get("kind") : kinds[0];
    const choices = kinds.map((kind) => [kind, `${kind}: ${formatCount(rowsOf(kind).length)}`]);
    const change = (kind) => {
      fill(kind);
      explorer.replaceAddress("compare", "", { kind });
    };
    fill(chosen);
    root.append(
      element("h1", {}, "Compare"),
      element(
        "p",
        { class: "lead" },
        "What became of the codes of ",
        element("bdi", {}, compared.first),
        `, by the patches of ${formatCount(compared.num_images)} ${explorer.noun}s that both explorers show: on the `,
        "left a code of the other explorer and its patches, on the right the codes that they have here.",
      ),
      figureTable(compared.figures, compared.first),
      element(
        "div",
        { class: "controls" },
        explorer.choices("what became of the codes", choices, chosen, change),
      ),
      hint,
      list,
      explorer.licenceLine(meta),
    );
  };

  explorer.pages.set("compare", { title: "Compare", show });
})();
