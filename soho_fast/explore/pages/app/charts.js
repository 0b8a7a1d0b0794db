"use strict";

// Small charts. Each function takes one object and returns an element that fills the width it is given; colours come
// from style.css. `label` says what the chart shows, for those who do not see it.
//
//   histogram({counts, edges, label})                 bars; `edges` has one entry more than `counts`
//   heatMap({values, rows, columns, label, name})     values >= 0, row by row; `name` of what is counted
//   interval({low, value, high, greatest, proven})    a ratio in its interval, on a logarithmic axis from 1/4 to
//                                                     `greatest`, 1 marked
explorer.charts = {};

(() => {
  const { charts, element, formatNumber, formatCount } = explorer;

  charts.histogram = ({ counts, edges, label }) => {
    const most = Math.max(1, ...counts);
    const bars = counts.map((count, bin) =>
      element("div", {
        class: "bar",
        title: `${formatNumber(edges[bin])} to ${formatNumber(edges[bin + 1])}: ${formatCount(count)}`,
        style: { height: `${count ? Math.max(2, (100 * count) / most) : 0}%` },
      }),
    );
    const [low, high] = [edges[0], edges.at(-1)];
    const marks = [low, (low + high) / 2, high].map((value) => element("span", {}, formatNumber(value)));
    return element(
      "div",
      { class: "chart", role: "img", "aria-label": label },
      element("div", { class: "bars" }, bars),
      element("div", { class: "range" }, marks),
    );
  };

  charts.heatMap = ({ values, rows, columns, label, name = "" }) => {
    const most = Math.max(1e-12, ...values);
    const patches = values.map((value, patch) => {
      const row = Math.floor(patch / columns);
      return element("div", {
        class: "heat",
        title: `row ${row + 1}, column ${(patch % columns) + 1}: ${formatNumber(value)} ${name}`.trim(),
        style: { opacity: value > 0 ? 0.06 + 0.94 * (value / most) : 0 },
      });
    });
    const style = { gridTemplateColumns: `repeat(${columns}, 1fr)`, aspectRatio: `${columns} / ${rows}` };
    return element("div", { class: "chart heat-map", role: "img", "aria-label": label, style }, patches);
  };

  charts.interval = ({ low, value, high, greatest: end, proven }) => {
    const LEAST = 0.25;
    const place = (number) => Math.log(Math.max(number, LEAST) / LEAST) / Math.log(Math.max(end, 2) / LEAST);
    const percent = (number) => `${100 * Math.min(place(number), 1)}%`;
    const text = `${formatNumber(value)}, between ${formatNumber(low)} and ${formatNumber(high)}`;
    return element(
      "div",
      { class: proven ? "interval" : "interval unproven", role: "img", "aria-label": text, title: text },
      element("div", { class: "interval-one", style: { left: percent(1) } }),
      element("div", {
        class: "interval-range",
        style: { left: percent(low), right: `calc(100% - ${percent(high)})` },
      }),
      element("div", { class: "interval-value", style: { left: percent(value) } }),
    );
  };
})();
