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
        script.remove();
        requested.delete(name);
        reject(new Error(`data/${name}.js is missing or damaged: build the explorer again`));
      };
      script.onerror = fail;
      // Runs after the script: one that is cut short has handed over nothing.
      script.onload = () => (request.received ? script.remove() : fail());
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
  const IMAGES_PER_FILE = 256;
  const fileName = (kind, number, perFile) => `${kind}-${String(Math.floor(number / perFile)).padStart(4, "0")}`;

  const loadItem = async (kind, what, number, perFile, count) => {
    if (!Number.isInteger(number) || number < 0 || number >= count) {
      throw new Error(`${what}: expected a number from 0 to ${count - 1}, got ${number}`);
    }
    const name = fileName(kind, number, perFile);
    const item = (await explorer.load(name))[number % perFile];
    if (!item) throw new Error(`data/${name}.js ends too early: build the explorer again`);
    return item;
  };

  // Returns a promise of all of a code, or of an image; refuses a number that there is not.
  explorer.loadCode = async (code) =>
    loadItem("codes", "code", code, CODES_PER_FILE, (await explorer.load("meta")).num_codes);
  explorer.loadImage = async (image) =>
    loadItem("images", "image", image, IMAGES_PER_FILE, (await explorer.load("meta")).num_shown);

  // A promise of the wall, whose columns are all there and K long.
  explorer.loadWall = async () => {
    const { num_codes: numCodes } = await explorer.load("meta");
    const wall = await explorer.load("wall");
    for (const column of WALL_COLUMNS) {
      const length = Array.isArray(wall[column]) ? wall[column].length : 0;
      if (length !== numCodes) {
        throw new Error(`data/wall.js: ${column} has ${length} of ${numCodes} codes: build the explorer again`);
      }
    }
    wall.name ??= wall.word.map((word, code) => wall.label[code] ?? word);
    return wall;
  };

  // Where a codebook has levels its codes are called by level and number in it, both as people and as papers count:
  // "2.17" is code 17 of the second level.
  let levelCodes = null; // codes of a level; null where there is one level
  explorer.readLevels = (meta) => {
    levelCodes = meta.num_levels > 1 ? meta.num_codes / meta.num_levels : null;
    explorer.around = (meta.window - 1) / 2;
  };
  explorer.codeName = (code) =>
    levelCodes === null ? String(code) : `${Math.floor(code / levelCodes) + 1}.${code % levelCodes}`;
  explorer.codeNumber = (text) => {
    const [, level, code] = /^(?:(\d+)\.)?(\d+)$/.exec(text) ?? [];
    if (code === undefined || (level !== undefined && (levelCodes === null || level === "0"))) return null;
    if (level !== undefined && Number(code) >= levelCodes) return null;
    return level === undefined ? Number(code) : (Number(level) - 1) * levelCodes + Number(code);
  };
  // Whether a code is of a level, from 1; any is where it is null.
  explorer.isOfLevel = (code, level) =>
    level === null || levelCodes === null || Math.floor(code / levelCodes) === level - 1;
  // The level of an address, from 1, or `otherwise`.
  explorer.levelOf = (parameters, meta, otherwise) => {
    const level = Number(parameters.get("level"));
    return Number.isInteger(level) && level >= 1 && level <= meta.num_levels ? level : otherwise;
  };
  explorer.levelBox = (meta, chosen, onChange, all = null) => {
    if (meta.num_levels === 1) return null;
    const levels = Array.from({ length: meta.num_levels }, (_, place) => [`${place + 1}`, `${place + 1}`]);
    const options = all ? [["", all], ...levels] : levels;
    return explorer.selectBox("level", options, `${chosen ?? ""}`, (value) => onChange(Number(value) || null));
  };

  // The path of the image of a number, in a folder of them.
  const pathIn = (folder, number, ending) =>
    `${fileName(folder, number, IMAGES_PER_FILE).replace("-", "/")}/${String(number).padStart(6, "0")}.${ending}`;
  explorer.decodedPath = (code) => pathIn("decoded", code, "png");
  explorer.imagePath = (image) => pathIn("images", image, "jpg");

  const WALL_COLUMNS = [
    ...["tokens", "images", "mean_distance", "spread", "word", "lift", "lift_low", "lift_high", "precision"],
    ...["near_code", "near_distance", "x", "y", "medoid", "label"],
  ];
})();
