"use strict";

// Clips of audio: parts of them to hear, cut from their samples, which come as data do: a page opened from a disk may
// not fetch files.
(() => {
  const { element } = explorer;
  const LARGEST = 32768; // of a sample
  let context = null;
  let stop = () => {}; // Ends what is played.

  const bufferOf = async (image) => {
    const { rate, samples } = await explorer.load(`sound-${String(image).padStart(6, "0")}`);
    const bytes = Uint8Array.from(atob(samples), (sign) => sign.charCodeAt(0));
    const values = Float32Array.from(new Int16Array(bytes.buffer), (value) => value / LARGEST);
    const buffer = context.createBuffer(1, values.length, rate);
    buffer.copyToChannel(values, 0);
    return buffer;
  };

  // A button that plays parts of clips, [clip, from, to] of 0 to 1 each, one after another; pressed again it stops.
  explorer.playButton = (label, parts) => {
    const button = element("button", { type: "button", class: "quiet play", "aria-label": label });
    const show = (isPlaying) => {
      button.textContent = isPlaying ? "\u25a0" : "\u25b6";
      button.setAttribute("aria-pressed", String(isPlaying));
    };
    const play = async () => {
      let source = null;
      let isWanted = true;
      stop = () => {
        isWanted = false;
        source?.stop();
        show(false);
      };
      show(true);
      context ??= new AudioContext();
      for (const [image, from, to] of parts) {
        const buffer = await bufferOf(image);
        if (!isWanted) return;
        source = new AudioBufferSourceNode(context, { buffer });
        source.connect(context.destination);
        source.start(0, from * buffer.duration, (to - from) * buffer.duration);
        await new Promise((resolve) => source.addEventListener("ended", resolve));
        if (!isWanted) return;
      }
      show(false);
    };
    button.addEventListener("click", () => {
      const isPlaying = button.getAttribute("aria-pressed") === "true";
      stop(); // One at a time.
      if (isPlaying) return;
      play().catch((error) => button.replaceWith(element("span", { class: "hint", role: "alert" }, error.message)));
    });
    show(false);
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
