"use strict";

// How the codebook came about: curves from the run's log, events, and the unused codes.
(() => {
  const { element, card, charts, formatCount, formatPlural } = explorer;
  const FIRST_SHOWN = 60;
  const FIRST_CHIPS = 12;
  const NUM_BINS = 48;

  const HINTS = {
    perplexity: "Effective number of codes: exp(entropy) of the running usage.",
    "perplexity of a step": "The same for one step: it shows at once when the features take few codes.",
    "share of the most frequent code": "Of one step's features.",
    "code error":
      "Mean squared distance of one step's features from their codes, in units of their variance. Above 1 a single " +
      "code would be nearer to all of them; a run that stays there is lost.",
    "feature drift":
      "How far the features' mean has moved, in standard deviations, since the CNN was frozen " +
      "(later: over about a thousand steps).",
    "feature spread": "The features' variance in units of what it was then.",
    "active codes":
      "Codes whose running usage is not near zero. It lags by some hundred steps, and resets keep it up, so a lost " +
      "run can have many active codes.",
    "reset codes": "Codes reset since the previous point.",
    "codebook drift": "How far one step moves the codes, in units of the codebook's spread.",
  };

  const curves = ({ series, events }) =>
    series.map(({ name, points }) => {
      const chart = charts.line({ series: [{ name, points }], events, label: `${name} by step`, name: "step" });
      return card(name[0].toUpperCase() + name.slice(1), HINTS[name] ?? null, chart);
    });

  const eventList = ({ events }) => {
    const rows = events.map(([step, text]) =>
      element("li", {}, element("strong", {}, `step ${formatCount(step)}`), ": ", element("bdi", {}, text)),
    );
    return rows.length
      ? card("Events", "The dashed upright lines of the curves.", element("ul", { class: "events" }, rows))
      : null;
  };

  // When the codes that were reset were reset last.
  const resetsOf = ({ reset, last_step: lastStep }) => {
    const known = reset.filter((step) => step !== null);
    const first = known.reduce((least, step) => Math.min(least, step), Infinity);
    const later = known.filter((step) => step > first);
    if (!later.length) return null;
    const counts = Array(NUM_BINS).fill(0);
    for (const step of later) counts[Math.min(NUM_BINS - 1, Math.floor((step / lastStep) * NUM_BINS))] += 1;
    const edges = Array.from({ length: NUM_BINS + 1 }, (_, bin) => Math.round((bin / NUM_BINS) * lastStep));
    const label = "codes by the step of their last reset";
    const codes = formatPlural(later.length, "code");
    const hint =
      `Of the ${codes} that were reset after step ${formatCount(first)}: when that was last.`;
    const links = reset
      .map((step, code) => ({ step, code }))
      .filter(({ step }) => step !== null && step > first)
      .sort((a, b) => b.step - a.step || a.code - b.code)
      .map(({ step, code }) =>
        element(
          "a",
          { class: "chip", href: explorer.address("code", String(code)), dataset: { code } },
          `${code}`,
          element("span", { class: "hint" }, `step ${formatCount(step)}`),
        ),
      );
    const chips = element("div", { class: "chips resets" });
    const more = explorer.fold(chips, links, FIRST_CHIPS);
    return card("Codes that were unused and reset", hint, charts.histogram({ counts, edges, label }), chips, more);
  };

  const unusedCodes = ({ reset, unused_since: unusedSince, num_snapshots: numSnapshots }, tokens) => {
    const known = numSnapshots > 1;
    const codes = tokens
      .map((count, code) => ({ code, count, since: unusedSince[code] ?? null, at: reset[code] ?? null }))
      .filter(({ count, since }) => since !== null || count === 0)
      .map((row) => ({ ...row, never: row.since !== null && row.since === row.at }))
      // Those first that were used and no longer are; last those that never were.
      .sort((a, b) => a.never - b.never || (a.since ?? Infinity) - (b.since ?? Infinity) || a.code - b.code);
    const unknown =
      "This training left one state of the codebook's usage alone: since when a code is unused is not known, but " +
      "for those that never were used.";
    const note = known ? null : explorer.notice(unknown);
    const none = known
      ? "Every code had assigned features in training, and has some here."
      : "Every code has assigned features here.";
    if (!codes.length) return [note, element("p", { class: "hint" }, none)];
    const ended = codes.filter(({ since, never }) => since !== null && !never).length;
    const total =
      `${formatPlural(codes.length, "code")}: ${formatCount(ended)} had assigned features before, ` +
      `${formatCount(codes.filter(({ never }) => never).length)} had none since the last reset.`;
    const step = (value, otherwise) => (value === null ? otherwise : `step ${formatCount(value)}`);
    const sinceStep = (since, never) =>
      never ? `${step(since)}, its last reset` : step(since, known ? "used to the end" : "not known");
    const row = ({ code, count, since, at, never }) =>
      element(
        "tr",
        { dataset: { code } },
        element("th", { scope: "row" }, element("a", { href: explorer.address("code", String(code)) }, `${code}`)),
        element("td", { class: "number" }, sinceStep(since, never)),
        element("td", { class: "number" }, step(at, "not known")),
        element("td", { class: "number" }, formatCount(count)),
      );
    const body = element("tbody");
    const more = explorer.fold(body, codes.map(row), FIRST_SHOWN);
    const head = ["code", "unused in training since", "last reset at", "tokens here"];
    return [
      note,
      known ? element("p", { class: "hint" }, total) : null,
      explorer.table("lifts unused", head, body),
      more,
    ];
  };

  const show = async (root) => {
    const [timeline, wall] = await Promise.all([explorer.load("timeline"), explorer.loadWall()]);
    root.append(element("div", { class: "title" }, element("h1", {}, "Timeline")));
    if (timeline === null) {
      root.append(
        explorer.notice(
          "Nothing is known of this codebook's training: no run's log lay beside the model when this explorer was " +
            "built. The explorer of a run, built from its folder, shows when codes were reset and since when they " +
            "are unused.",
        ),
      );
      return;
    }
    const { sentences, series } = timeline;
    const items = sentences.map((text) => element("li", {}, text));
    if (items.length) root.append(element("ul", { class: "sentences" }, items));
    if (!series.length) {
      const nothing = "The model has no run's log (log.jsonl) beside it, or one that says nothing of the codebook.";
      root.append(explorer.notice(nothing));
    }
    const cards = [...curves(timeline), resetsOf(timeline), eventList(timeline)].filter(Boolean);
    root.append(element("div", { class: "cards" }, cards));
    const hint = "In training, as finely as its snapshots tell; and among the images of this explorer.";
    const unused = card("Unused codes", hint, unusedCodes(timeline, wall.tokens));
    root.append(element("div", { class: "cards" }, unused));
  };

  explorer.pages.set("timeline", { title: "Timeline", show });
})();
