"use strict";

// What came back of a question: the answers as bars, and where the model looked, see soho_fast/explore/attention.py.
(() => {
  const { element, formatPercent } = explorer;
  const MOST_CODES = 6;

  // The answers as bars; a text of "rank" can be chosen, and its attention is shown then.
  explorer.answerList = (reply, onChoose) => {
    const rows = reply.answers.map((answer) => {
      const words = answer.text ?? answer.answer ?? answer.label;
      const name = element("span", { class: "ask-answer-text", dir: "auto" }, words);
      const parts = [
        name,
        element("span", { class: "ask-bar" }, element("span", { style: { width: `${100 * answer.score}%` } })),
        element("span", { class: "ask-score" }, `${(100 * answer.score).toFixed(1)} %`),
      ];
      if (answer.number === undefined) return element("li", { class: "ask-answer" }, parts);
      const pressed = String(answer.number === reply.attended);
      const choose = () => onChoose(answer.number);
      const title = "shade the image by this text";
      const attributes = { type: "button", class: "ask-answer", title, "aria-pressed": pressed, click: choose };
      return element("li", {}, element("button", attributes, parts));
    });
    return element("ol", { class: "plain ask-answers" }, rows);
  };

  // The share of a token's attention that each patch of an image gets, in a layer or in the mean of all.
  const attentionOf = (image, layer, token) => {
    if (layer !== null) return image.attention[layer][token];
    return image.attention[0][token].map(
      (_, patch) => image.attention.reduce((sum, each) => sum + each[token][patch], 0) / image.attention.length,
    );
  };

  // An image of a reply ({source, width, height} of it in `look`), with a line about the code or patch that is
  // pointed at: `tell(patch)` says more of a patch. Returns {view, codes, root}; `codes` is to be filled with chips.
  const viewOf = (image, look, wall, tell) => {
    const size = { width: look.width ?? image.patches_wide * 32, height: look.height ?? image.patches_high * 32 };
    const status = element("p", { class: "status", role: "status" });
    const says = (code) => (wall.name[code] === null ? "" : ` · ${wall.name[code]}`);
    const onPoint = (code, patch) => {
      const hint = image.codes ? "Point at a patch to see its code; a click opens it." : "";
      if (patch === null) status.textContent = hint;
      else if (code === null) status.textContent = tell(patch);
      else {
        const name = element("span", { dir: "auto" }, `code ${explorer.codeName(code)}${says(code)}`);
        status.replaceChildren(name, tell(patch) && ` · ${tell(patch)}`);
      }
    };
    const shown = { ...image, ...size, index: image.codes };
    const view = explorer.imageWithPatches(shown, look.source, seenAs(image), onPoint);
    onPoint(null, null);
    const codes = element("div", { class: "chips" });
    const link = element("a", { href: explorer.address("image", String(image.number)) }, "All its codes");
    const rest = image.number === null ? null : [" ", link, "."];
    const hint = element("p", { class: "hint" }, `The model saw ${seenAs(image)}.`, rest);
    return { view, codes, root: element("div", { class: "ask-view" }, view.root, status, codes, hint) };
  };

  const agreementOf = ({ agreement }) =>
    `Of the explorer's own images ${formatPercent(agreement)} of the patches have the same code by this model.`;
  const noCodes = ({ no_codes: why }) =>
    why && element("p", { class: "hint", id: "no-codes" }, `Patches name no codes: ${why}.`);

  // Fills `root` with the image of a reply to "codes", and its codes, those of most patches first.
  explorer.showCodes = (root, { looks, wall, ...reply }) => {
    const [image] = reply.images;
    const { codes, root: view } = viewOf(image, looks[0], wall, () => "");
    const shares = (image.codes ?? []).map((_, __, all) => 1 / all.length);
    codes.append(...codeChips(image, shares, wall, Infinity));
    root.append(element("div", { class: "ask-views" }, view), noCodes(reply) ?? "");
    if ((reply.agreement ?? 1) < 1 && image.codes) root.append(element("p", { class: "hint" }, agreementOf(reply)));
  };

  // Fills `root` with the images of a reply (`looks` of them: {source, width, height}), shaded by the attention of a
  // token. asked: {token, layer}, what is chosen, changed here; layer null is the last one, "mean" the mean of all.
  explorer.showAttention = (root, asked, { looks, wall, ...reply }, onChange) => {
    const last = reply.images[0].attention.length - 1;
    const shares = reply.images.map(() => []);
    const tell = (place) => (patch) => `${formatPercent(shares[place][patch] ?? null)} of the attention`;
    const views = reply.images.map((image, place) => viewOf(image, looks[place], wall, tell(place)));

    const sum = element("p", { class: "hint", id: "attention-sum" });
    const show = () => {
      const layer = asked.layer === "mean" ? null : Math.min(asked.layer ?? last, last);
      reply.images.forEach((image, place) => (shares[place] = attentionOf(image, layer, asked.token)));
      const most = Math.max(1e-12, ...shares.flat());
      views.forEach(({ view, codes }, place) => {
        view.shade(shares[place].map((share) => share / most));
        codes.replaceChildren(...codeChips(reply.images[place], shares[place], wall));
      });
      const total = shares.map((each) => formatPercent(each.reduce((a, b) => a + b, 0)));
      const where =
        total.length > 1 ? `the left image gets ${total[0]}, the right one ${total[1]}` : `the image gets ${total[0]}`;
      const which = layer === null ? "all layers" : `layer ${layer + 1} of ${last + 1}`;
      sum.textContent =
        `Of the attention of ${reply.tokens[asked.token]} ${where}, its text the rest. A patch's share is the mean ` +
        `over the heads of ${which}; the brightest one has ${formatPercent(most)}.`;
      for (const [token, button] of [...tokens.children].entries()) {
        button.setAttribute("aria-pressed", String(token === asked.token));
      }
      onChange();
    };
    asked.token = Math.min(asked.token, reply.tokens.length - 1);
    const tokens = element(
      "div",
      { class: "ask-tokens", role: "group", "aria-label": "whose attention" },
      reply.tokens.map((token, number) =>
        element(
          "button",
          {
            type: "button",
            dir: "auto",
            title: number ? `attention of ${token}` : "attention of [CLS], from which the answer is read",
            click: () => {
              asked.token = number;
              show();
            },
          },
          token,
        ),
      ),
    );
    const layers = element(
      "select",
      {
        "aria-label": "layer",
        change: ({ target }) => {
          asked.layer = target.value === "mean" ? "mean" : Number(target.value) === last ? null : Number(target.value);
          show();
        },
      },
      Array.from({ length: last + 1 }, (_, layer) =>
        element(
          "option",
          { value: layer, selected: layer === (asked.layer ?? last) },
          `layer ${layer + 1} of ${last + 1}${layer === last ? ", the last" : ""}`,
        ),
      ),
      element("option", { value: "mean", selected: asked.layer === "mean" }, "mean of all layers"),
    );
    root.append(
      element("h2", {}, "Where it looked"),
      element("p", { class: "hint" }, "Choose a word: patches are the brighter the more of its attention they get."),
      element("div", { class: "ask-whose" }, tokens, layers),
      element(
        "div",
        { class: "ask-views" },
        views.map((each) => each.root),
      ),
      sum,
    );
    if (reply.no_codes) root.append(noCodes(reply));
    else if (reply.reads === "features") {
      const hint = "This model reads the features themselves: a patch's code is the one nearest to its feature. ";
      root.append(element("p", { class: "hint" }, hint, agreementOf(reply)));
    }
    show();
  };

  const seenAs = ({ seen, number }) =>
    ({ upload: "the uploaded image", original: `the original of image ${number}` })[seen] ??
    `the small copy of image ${number}, as the original is not at hand`;

  // The codes that get the largest shares, their patches together.
  const codeChips = (image, shares, wall, most = MOST_CODES) => {
    if (!image.codes) return [];
    const byCode = new Map();
    image.codes.forEach((code, patch) => {
      if (code !== null) byCode.set(code, (byCode.get(code) ?? 0) + shares[patch]);
    });
    return [...byCode]
      .sort(([, a], [, b]) => b - a)
      .slice(0, most)
      .map(([code, share]) =>
        element(
          "a",
          { class: "chip", href: explorer.address("code", String(code)) },
          explorer.codeCrop(wall, code, 28),
          element("span", { dir: "auto" }, `${explorer.codeName(code)} ${wall.name[code] ?? ""}`.trim()),
          element("span", { class: "hint" }, formatPercent(share)),
        ),
      );
  };
})();
