"use strict";

// Small charts. Each function takes one object and returns an element that fills the width it is given; colours come
// from style.css. `label` says what the chart shows, for those who do not see it.
//
//   histogram({counts, edges, label})                 bars; `edges` has one entry more than `counts`
//   heatMap({values, rows, columns, label, name})     values >= 0, row by row; `name` of what is counted
//   line({series, events, label, height, name})       series: [{name, points: [[x, y], ...]}], `name` of x, events:
//                                                     [[x, text], ...]
//   interval({low, value, high, greatest, proven})    a ratio in its interval, on a logarithmic axis from 1/4 to
//                                                     `greatest`, 1 marked
explorer.charts = {};

(() => {
  const { charts, element, svgElement, formatNumber, formatCount } = explorer;

  // Draws again when the width changes.
  const drawnToFit = (className, draw) => {
    const box = element("div", { class: `chart ${className}` });
    let drawn = 0;
    new ResizeObserver(() => {
      if (box.clientWidth === drawn || !box.clientWidth) return;
      drawn = box.clientWidth;
      box.replaceChildren(draw(drawn));
    }).observe(box);
    return box;
  };

  // Round numbers from `low` to `high`, about `count` of them.
  const ticks = (low, high, count) => {
    const wanted = (high - low || 1) / count;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
    const first = Math.ceil(low / step);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
  };

  const text = (x, y, content, anchor = "middle") => svgElement("text", { x, y, "text-anchor": anchor }, content);

  charts.histogram = ({ counts, edges, label }) =>
    drawnToFit("histogram", (width) => {
      const HEIGHT = 120;
      const BASE = HEIGHT - 18;
      const most = Math.max(1, ...counts);
      const bar = width / Math.max(1, counts.length);
      const [low, high] = [edges[0], edges[edges.length - 1]];
      const place = (value) => ((value - low) / (high - low || 1)) * width;
      const bars = counts.map((count, bin) => {
        const height = count ? Math.max(1.5, (count / most) * (BASE - 6)) : 0;
        const gap = bar > 5 ? 1 : 0;
        return svgElement(
          "rect",
          { class: "bar", x: bin * bar, y: BASE - height, width: Math.max(0.5, bar - gap), height },
          svgElement(
            "title",
            {},
            `${formatNumber(edges[bin])} to ${formatNumber(edges[bin + 1])}: ${formatCount(count)}`,
          ),
        );
      });
      const marks = ticks(low, high, Math.max(2, Math.min(6, width / 70))).map((value) => {
        const x = place(value);
        const anchor = x < 12 ? "start" : x > width - 12 ? "end" : "middle";
        return text(x, HEIGHT - 4, formatNumber(value), anchor);
      });
      return svgElement(
        "svg",
        { width, height: HEIGHT, role: "img", "aria-label": label },
        bars,
        svgElement("line", { class: "axis", x1: 0, x2: width, y1: BASE, y2: BASE }),
        marks,
      );
    });

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

  charts.line = ({ series, events = [], label, height = 200, name = "" }) =>
    drawnToFit("line", (width) => {
      const [LEFT, RIGHT, TOP, BOTTOM] = [52, 12, 12, 24];
      const points = series.flatMap((one) => one.points);
      const xs = [...points.map(([x]) => x), ...events.map(([x]) => x)];
      const ys = points.map(([, y]) => y);
      const [xLow, xHigh] = [least(xs), greatest(xs)];
      let [yLow, yHigh] = [Math.min(0, least(ys)), greatest(ys)];
      if (yLow === yHigh) yHigh = yLow + 1;
      const toX = (x) => LEFT + ((x - xLow) / (xHigh - xLow || 1)) * (width - LEFT - RIGHT);
      const toY = (y) => height - BOTTOM - ((y - yLow) / (yHigh - yLow)) * (height - TOP - BOTTOM);

      const svg = svgElement("svg", { width, height, role: "img", "aria-label": label });
      for (const value of ticks(yLow, yHigh, 4)) {
        const y = toY(value);
        svg.append(svgElement("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
        svg.append(text(LEFT - 8, y + 4, formatNumber(value), "end"));
      }
      for (const value of ticks(xLow, xHigh, Math.max(2, Math.min(8, width / 90)))) {
        svg.append(text(toX(value), height - 6, formatNumber(value, 6)));
      }
      for (const [x, what] of events) {
        const mark = { class: "event", x1: toX(x), x2: toX(x), y1: TOP, y2: height - BOTTOM };
        svg.append(svgElement("line", mark, svgElement("title", {}, `${name} ${formatCount(x)}: ${what}`.trim())));
      }
      series.forEach((one, number) => {
        const coordinates = one.points.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ");
        const colour = `var(--curve-${number % 4})`;
        svg.append(svgElement("polyline", { class: "curve", style: { stroke: colour }, points: coordinates }));
        if (one.points.length > 40) return;
        for (const [x, y] of one.points) {
          svg.append(svgElement("circle", { style: { fill: colour }, cx: toX(x), cy: toY(y), r: 2.5 }));
        }
      });

      // What the pointer is nearest to.
      const cursor = svgElement("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
      const readout = text(0, TOP + 4, "");
      readout.classList.add("readout");
      svg.append(cursor, readout);
      const steps = [...new Set(points.map(([x]) => x))].sort((a, b) => a - b);
      svg.addEventListener("pointermove", (event) => {
        if (!steps.length) return;
        const pointed = event.clientX - svg.getBoundingClientRect().left;
        const distance = (step) => Math.abs(toX(step) - pointed);
        const step = steps.reduce((best, one) => (distance(one) < distance(best) ? one : best));
        const values = series.map((one) => {
          const found = one.points.find(([x]) => x === step);
          return found ? `${series.length > 1 ? `${one.name} ` : ""}${formatNumber(found[1], 4)}` : null;
        });
        const x = toX(step);
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", "visible");
        readout.setAttribute("x", x > width / 2 ? x - 8 : x + 8);
        readout.setAttribute("text-anchor", x > width / 2 ? "end" : "start");
        readout.textContent = `${name} ${formatCount(step)}: ${values.filter(Boolean).join(", ")}`.trim();
      });
      svg.addEventListener("pointerleave", () => {
        cursor.setAttribute("visibility", "hidden");
        readout.textContent = "";
      });
      return svg;
    });

  // Math.min(...values) fails where there are hundreds of thousands.
  const least = (values) => values.reduce((a, b) => Math.min(a, b), values.length ? Infinity : 0);
  const greatest = (values) => values.reduce((a, b) => Math.max(a, b), values.length ? -Infinity : 0);

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
