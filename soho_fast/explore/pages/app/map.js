"use strict";

// Codes in the plane, on a canvas; the same as a list for those who do not point.
(() => {
  const { element, formatPlural } = explorer;
  const CROPS_SHOWN = 400; // As many codes in view or fewer are shown as crops.
  const GREATEST_ZOOM = 40;

  // One listener for all maps: it would keep each map and its images.
  let repaint = () => {};
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint());

  explorer.pages.set("map", {
    title: "Map",
    show: async (root, argument, parameters, meta) => {
      const wall = await explorer.loadWall();
      if (!meta.num_channels) {
        const nothing = "The codebook of these codes is not known here, so nothing tells which are close.";
        root.append(element("h1", {}, "Map"), explorer.notice(nothing));
        return;
      }
      const level = explorer.levelOf(parameters, meta, 1);
      // A level of too few codes has no t-SNE.
      const hasNear = wall.x_near.some((x, code) => x !== null && explorer.isOfLevel(code, level));
      const maps = meta.maps.filter((name) => name === "PCA" || hasNear);
      const projection = maps.includes(parameters.get("by")) ? parameters.get("by") : maps[0];
      const [xs, ys] = projection === "PCA" ? [wall.x, wall.y] : [wall.x_near, wall.y_near];
      const codesShown = wall.tokens
        .map((_, code) => code)
        .filter((code) => explorer.isOfLevel(code, level) && xs[code] !== null);
      const colourings = ["", "usage", "word"];
      const colouring = colourings.includes(parameters.get("colour")) ? parameters.get("colour") : "";
      // Addresses of the same map, but for what is changed.
      const addressWith = (changes) =>
        explorer.address("map", "", { level: level === 1 ? "" : level, by: projection, colour: colouring, ...changes });
      const most = wall.tokens.reduce((a, b) => Math.max(a, b), 1);
      const canvas = element("canvas", {
        class: "map",
        role: "img",
        "aria-label": "map of the codes; the same as a list is below",
      });
      const status = element("p", { class: "status", role: "status" });
      const card = element("div", { class: "map-card", hidden: true });
      const stage = element("div", { class: "map-stage" }, canvas, card);
      const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
      const given = (name, otherwise) => {
        const text = parameters.get(name);
        return text !== null && Number.isFinite(Number(text)) ? Number(text) : otherwise;
      };
      const asked = given("code", -1);
      let selected = codesShown.includes(asked) ? asked : null;
      let width = 0;
      let height = 0;

      // One scale for both directions, that distances are true; view.x, view.y: the point in the middle.
      const MARGIN = 28;
      const range = (values) => {
        const low = codesShown.reduce((least, code) => Math.min(least, values[code]), 1);
        const high = codesShown.reduce((greatest, code) => Math.max(greatest, values[code]), 0);
        return { middle: (low + high) / 2, length: Math.max(high - low, 1e-6) };
      };
      const ranges = { x: range(xs), y: range(ys) };
      const view = {
        zoom: clamp(given("zoom", 1), 1, GREATEST_ZOOM),
        x: given("x", ranges.x.middle),
        y: given("y", ranges.y.middle),
      };
      const scale = () =>
        view.zoom * Math.min((width - 2 * MARGIN) / ranges.x.length, (height - 2 * MARGIN) / ranges.y.length);
      const toX = (x) => width / 2 + (x - view.x) * scale();
      const toY = (y) => height / 2 + (y - view.y) * scale();
      const radius = (code) =>
        Math.max(1.5, 9 * Math.sqrt(wall.tokens[code] / most)) * Math.min(3, Math.sqrt(view.zoom));
      const keepInside = () => {
        for (const [name, { middle, length }] of Object.entries(ranges)) {
          const half = (length / 2) * (1 - 1 / view.zoom);
          view[name] = clamp(view[name], middle - half, middle + half);
        }
      };
      const isIn = (place, length) => place > -30 && place < length + 30;
      const inView = () => codesShown.filter((code) => isIn(toX(xs[code]), width) && isIn(toY(ys[code]), height));
      const outline = (context, code, size) => {
        context.beginPath();
        context.arc(toX(xs[code]), toY(ys[code]), size, 0, 2 * Math.PI);
      };

      const images = new Map(); // path -> Image
      const imageAt = (path) => {
        if (!images.has(path)) {
          const image = new Image();
          image.onload = () => drawSoon();
          image.src = path;
          images.set(path, image);
        }
        return images.get(path);
      };

      const drawCrop = (context, code, size) => {
        const [number, row, column, , rows, columns] = wall.medoid[code];
        const image = imageAt(explorer.imagePath(number));
        if (!image.complete || !image.naturalWidth) return false;
        const [patchWidth, patchHeight] = [image.naturalWidth / columns, image.naturalHeight / rows];
        const [x, y] = [toX(xs[code]) - size / 2, toY(ys[code]) - size / 2];
        // What is around it is shown too, as far as the image goes.
        const span = Math.min(2 * explorer.around + 1, rows, columns);
        const left = clamp(column + 0.5 - span / 2, 0, columns - span) * patchWidth;
        const top = clamp(row + 0.5 - span / 2, 0, rows - span) * patchHeight;
        context.drawImage(image, left, top, span * patchWidth, span * patchHeight, x, y, size, size);
        context.strokeStyle = "rgb(128 128 128 / 40%)";
        context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
        return true;
      };

      // From few, blue, to many, red.
      const ramp = (share) => `hsl(${230 - 220 * share} 75% 45%)`;
      const byWord = explorer.codeColours(wall);
      const colourOf = (code, otherwise) => {
        if (colouring === "usage") return ramp(Math.log1p(wall.tokens[code]) / Math.log1p(most));
        if (colouring === "word") return byWord(code);
        return otherwise;
      };

      // Names of codes, the surest first, each once, where none lies over another.
      const drawNames = (context, codes, colour) => {
        context.font = "600 13px system-ui, sans-serif";
        context.textAlign = "center";
        const taken = [];
        const named = codes.filter((code) => wall.name[code] !== null);
        named.sort((a, b) => (wall.lift_low[b] ?? Infinity) - (wall.lift_low[a] ?? Infinity) || a - b);
        const drawn = new Set();
        for (const code of named.slice(0, 1000)) {
          const name = wall.name[code].slice(0, 24);
          if (drawn.has(name)) continue;
          const half = context.measureText(name).width / 2 + 4;
          const [x, y] = [toX(xs[code]), toY(ys[code]) + Math.max(14, 1.4 * radius(code)) + 12];
          const box = [x - half, y - 13, x + half, y + 4];
          if (box[0] < 0 || box[2] > width || box[3] > height) continue;
          if (taken.some(([a, b, c, d]) => box[0] < c && box[2] > a && box[1] < d && box[3] > b)) continue;
          taken.push(box);
          drawn.add(name);
          context.lineWidth = 4;
          context.lineJoin = "round";
          context.strokeStyle = getComputedStyle(canvas.parentElement).backgroundColor;
          context.strokeText(name, x, y);
          context.fillStyle = colour;
          context.fillText(name, x, y);
        }
        context.lineWidth = 1;
        canvas.dataset.names = JSON.stringify(taken); // Tells tests.
      };

      const draw = () => {
        const colours = getComputedStyle(canvas);
        const [accent, muted, text] = ["--accent", "--muted", "--text"].map((name) => colours.getPropertyValue(name));
        const context = canvas.getContext("2d");
        context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
        context.clearRect(0, 0, width, height);
        const codes = inView();
        const withCrops = codes.length <= CROPS_SHOWN;
        const least = clamp(0.4 * Math.sqrt((width * height) / Math.max(codes.length, 1)), 18, 48);
        // The rare over the frequent, so that none is covered.
        codes.sort((a, b) => wall.tokens[b] - wall.tokens[a]);
        for (const code of codes) {
          const [x, y] = [toX(xs[code]), toY(ys[code])];
          const active = wall.tokens[code] > 0;
          const size = Math.max(least, 2.8 * radius(code));
          context.globalAlpha = 1;
          if (withCrops && active && drawCrop(context, code, size)) {
            if (colouring) {
              context.lineWidth = 3;
              context.strokeStyle = colourOf(code);
              context.strokeRect(x - size / 2, y - size / 2, size, size);
              context.lineWidth = 1;
            }
            continue;
          }
          context.globalAlpha = active ? 0.55 : 0.8;
          outline(context, code, active ? radius(code) : 2);
          if (active) {
            context.fillStyle = colourOf(code, accent);
            context.fill();
          } else {
            context.strokeStyle = muted;
            context.stroke();
          }
        }
        context.globalAlpha = 1;
        drawNames(context, codes, text);
        if (selected !== null) {
          outline(context, selected, Math.max(9, 1.6 * radius(selected)));
          context.lineWidth = 2.5;
          context.strokeStyle = text;
          context.stroke();
          context.lineWidth = 1;
        }
      };
      let waiting = false;
      const drawSoon = () => {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
          waiting = false;
          draw();
        });
      };

      const select = (code) => {
        selected = code;
        canvas.dataset.selected = code ?? "";
        card.hidden = code === null;
        if (code === null) {
          status.textContent = "Point at a code to see it; a click opens it. The wheel zooms, dragging moves.";
        } else {
          const word = wall.name[code];
          const active = wall.tokens[code] > 0;
          const usage = active ? formatPlural(wall.tokens[code], "token") : "unused";
          const text = [`code ${explorer.codeName(code)}`, word, usage].filter((part) => part !== null).join(" · ");
          status.replaceChildren(element("a", { href: explorer.address("code", String(code)), dir: "auto" }, text));
          const [x, y] = [toX(xs[code]), toY(ys[code])];
          card.replaceChildren(
            explorer.codeCrop(wall, code, 96),
            element("strong", {}, `code ${explorer.codeName(code)}`),
            element("span", { dir: "auto" }, word ?? ""),
          );
          card.style.left = `${clamp(x + 16, 8, Math.max(8, width - 128))}px`;
          card.style.top = `${clamp(y + 16, 8, Math.max(8, height - 160))}px`;
        }
        drawSoon();
      };
      const remember = () => {
        const moved = view.zoom > 1;
        explorer.replaceAddress("map", "", {
          level: level === 1 ? "" : level,
          by: parameters.get("by") ?? "",
          colour: colouring,
          code: selected,
          zoom: moved ? view.zoom.toFixed(2) : "",
          x: moved ? view.x.toFixed(4) : "",
          y: moved ? view.y.toFixed(4) : "",
        });
      };

      const nearest = (pointX, pointY, within) => {
        let best = null;
        let least = within ** 2;
        for (const code of codesShown) {
          const away = (toX(xs[code]) - pointX) ** 2 + (toY(ys[code]) - pointY) ** 2;
          if (away < least) [best, least] = [code, away];
        }
        return best;
      };
      const zoomAt = (factor, pointX, pointY) => {
        const before = scale();
        view.zoom = clamp(view.zoom * factor, 1, GREATEST_ZOOM);
        const share = 1 / before - 1 / scale();
        view.x += (pointX - width / 2) * share;
        view.y += (pointY - height / 2) * share;
        keepInside();
        select(selected);
        remember();
      };

      // Pointers: one drags, two pinch.
      const pointers = new Map();
      let dragged = false;
      const at = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        zoomAt(Math.exp(-event.deltaY * 0.0015), ...at(event));
      });
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        pointers.set(event.pointerId, at(event));
        if (pointers.size === 1) dragged = false;
      });
      canvas.addEventListener("pointermove", (event) => {
        const [x, y] = at(event);
        const before = pointers.get(event.pointerId);
        if (!before) {
          if (event.pointerType === "mouse") select(nearest(x, y, 24));
          return;
        }
        if (pointers.size === 2) {
          const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
          const span = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
          zoomAt(span([x, y], other) / span(before, other), (x + other[0]) / 2, (y + other[1]) / 2);
          dragged = true;
        } else if (dragged || Math.hypot(x - before[0], y - before[1]) > 4) {
          dragged = true;
          view.x -= (x - before[0]) / scale();
          view.y -= (y - before[1]) / scale();
          keepInside();
          select(selected);
        } else return;
        pointers.set(event.pointerId, [x, y]);
      });
      const release = (event) => {
        pointers.delete(event.pointerId);
        if (dragged) remember();
      };
      canvas.addEventListener("pointerup", release);
      canvas.addEventListener("pointercancel", release);
      canvas.addEventListener("click", (event) => {
        if (dragged) return;
        const code = nearest(...at(event), 24);
        if (code === null) return;
        // A finger has shown nothing before it touched: the first touch shows, the second opens.
        if (event.pointerType === "touch" && code !== selected) {
          select(code);
          remember();
        } else location.hash = explorer.address("code", String(code));
      });
      // A finger always leaves; what it has shown stays.
      canvas.addEventListener("pointerleave", ({ pointerType }) => {
        if (pointerType === "mouse" && !pointers.size) select(null);
      });

      new ResizeObserver(() => {
        if (!canvas.clientWidth) return;
        [width, height] = [canvas.clientWidth, canvas.clientHeight];
        [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
        keepInside();
        draw();
        select(selected);
      }).observe(canvas);
      repaint = drawSoon;

      const zoomButton = (text, label, factor) => {
        const click = () => zoomAt(factor, width / 2, height / 2);
        return element("button", { type: "button", "aria-label": label, click }, text);
      };
      stage.append(
        element("div", { class: "map-zoom" }, zoomButton("+", "zoom in", 1.5), zoomButton("−", "zoom out", 1 / 1.5)),
      );

      const listed = (code) =>
        element(
          "a",
          { href: explorer.address("code", String(code)) },
          element("strong", {}, explorer.codeName(code)),
          element("span", { dir: "auto" }, wall.tokens[code] ? (wall.name[code] ?? "") : "unused"),
        );
      const choose = (name, values, chosen) => {
        const options = values.map((value) => [value, value || "none"]);
        const open = (value) => (location.hash = addressWith({ [name]: value }));
        return values.length > 1 && explorer.selectBox(name, options, chosen, open);
      };
      const controls = element(
        "div",
        { class: "controls" },
        explorer.levelBox(meta, level, (value) => (location.hash = addressWith({ level: value }))),
        choose("by", maps, projection),
        choose("colour", colourings, colouring),
      );
      // The list is made when it is opened.
      const list = element("div", { class: "map-list" });
      const folded = element("details", {}, element("summary", {}, "The same as a list, by usage"), list);
      folded.addEventListener("toggle", () => {
        if (!folded.open || list.firstChild) return;
        list.append(...codesShown.toSorted((a, b) => wall.tokens[b] - wall.tokens[a] || a - b).map(listed));
      });
      root.append(
        element("h1", {}, "Map"),
        explorer.lead(
          "Codes close in the codebook are close here, as far as a plane allows. The size shows the usage. " +
            (projection === "PCA"
              ? "PCA keeps large distances; rings are unused codes."
              : `${projection} keeps who is near whom; distances between groups and their sizes say nothing.`),
        ),
        controls,
        stage,
        status,
        folded,
        explorer.licenceLine(meta),
      );
      select(selected);
    },
  });
})();
