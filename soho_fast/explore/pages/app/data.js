"use strict";

// Data come as scripts that call explorer.receive(name, value): a page opened from a disk may not fetch files.
const explorer = { pages: new Map() };

(() => {
  const requested = new Map(); // name -> {promise, resolve}

  // Returns a promise of the value of data/<name>.js, which is loaded once.
  explorer.load = (name) => {
    if (requested.has(name)) return requested.get(name).promise;
    const request = {};
    request.promise = new Promise((resolve, reject) => {
      request.resolve = resolve;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      const fail = () => {
        requested.delete(name);
        reject(new Error(`data/${name}.js is missing or damaged: build the explorer anew`));
      };
      script.onerror = fail;
      // Runs after the script: one that is cut short has handed over nothing.
      script.onload = () => request.received || fail();
      document.head.append(script);
    });
    requested.set(name, request);
    return request.promise;
  };

  explorer.receive = (name, value) => {
    const request = requested.get(name);
    if (!request) return;
    request.received = true;
    request.resolve(value);
  };

  const CODES_PER_FILE = 64;
  const PICTURES_PER_FILE = 256;
  const fileName = (kind, number, perFile) => `${kind}-${String(Math.floor(number / perFile)).padStart(4, "0")}`;

  // Returns a promise of all of a code, or of a picture.
  explorer.loadCode = async (code) =>
    (await explorer.load(fileName("codes", code, CODES_PER_FILE)))[code % CODES_PER_FILE];
  explorer.loadPicture = async (picture) =>
    (await explorer.load(fileName("pictures", picture, PICTURES_PER_FILE)))[picture % PICTURES_PER_FILE];
  explorer.picturePath = (picture) =>
    `pictures/${String(Math.floor(picture / PICTURES_PER_FILE)).padStart(4, "0")}/${String(picture).padStart(6, "0")}.jpg`;
})();
