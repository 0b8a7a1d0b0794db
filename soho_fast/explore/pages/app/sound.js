"use strict";

// Clips of audio: parts of them to hear, cut from their samples, which come as data do: a page opened from a disk may
// not fetch files.
(() => {
  const { element } = explorer;
  const LARGEST = 32768; // of a sample
  let context = null;
  let stop = () => {};

  const bufferOf = async (image) => {
    const { rate, samples } = await explorer.load(`sound-${String(image).padStart(6, "0")}`);
    const bytes = Uint8Array.from(atob(samples), (sign) => sign.charCodeAt(0));
    const values = Float32Array.from(new Int16Array(bytes.buffer), (value) => value / LARGEST);
    const buffer = context.createBuffer(1, values.length, rate);
    buffer.copyToChannel(values, 0);
    return buffer;
  };

  // Resolves when a part of a clip was heard, or was stopped.
  const hear = (buffer, from, to) =>
    new Promise((resolve) => {
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(context.destination);
      source.onended = resolve;
      stop = () => source.stop();
      source.start(0, from * buffer.duration, (to - from) * buffer.duration);
    });

  // A button that plays parts of clips, [clip, from, to] of 0 to 1 each, one after another; pressed again it stops.
  explorer.playButton = (label, parts) => {
    const button = element("button", { type: "button", class: "quiet play", "aria-label": label }, "\u25b6");
    let isWanted = false;
    const show = () => {
      button.textContent = isWanted ? "\u25a0" : "\u25b6";
      button.setAttribute("aria-pressed", String(isWanted));
    };
    button.addEventListener("click", async () => {
      isWanted = !isWanted;
      if (!isWanted) return stop();
      document.querySelector('.play[aria-pressed="true"]')?.click(); // One at a time.
      context ??= new AudioContext();
      show();
      for (const [image, from, to] of parts) {
        const buffer = await bufferOf(image).catch(() => null);
        if (buffer && isWanted && button.isConnected) await hear(buffer, from, to);
      }
      isWanted = false;
      show();
    });
    return button;
  };

  // The part of a clip that a tile of an occurrence shows.
  explorer.partOf = (occurrence) => {
    const [left, wide] = explorer.spanOf(occurrence);
    return [occurrence[0], left / occurrence[5], (left + wide) / occurrence[5]];
  };

  // A page that is left falls silent.
  window.addEventListener("hashchange", () => stop());
})();
