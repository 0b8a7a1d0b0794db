"use strict";

// Codes to keep and notes on them, by a reader, stored by the browser for each explorer; as a file they can be passed
// on.
(() => {
  const { element } = explorer;
  const unsaved = {}; // What the browser did not store, as for some pages from a disk.

  // Where the codebook is not known, explorers are told apart by their tokens.
  const keyOf = (meta) => `explorer: notes: ${meta.title}, ${meta.num_codes}, ${meta.weights || meta.num_tokens}`;
  const read = (meta) =>
    unsaved[keyOf(meta)] ?? explorer.stored((storage) => JSON.parse(storage.getItem(keyOf(meta)))) ?? {};
  const write = (meta, notes) => {
    const key = keyOf(meta);
    unsaved[key] = notes;
    explorer.stored((storage) => {
      storage.setItem(key, JSON.stringify(notes));
      delete unsaved[key];
    });
  };

  // {code: {kept, note}} of the codes that have one of them.
  explorer.notes = read;

  // changes: {code: {kept, note}} of some codes, or one of the two.
  const change = (meta, changes) => {
    const notes = read(meta);
    for (const [code, values] of Object.entries(changes)) {
      notes[code] = { kept: false, note: "", ...notes[code], ...values };
      if (!notes[code].kept && !notes[code].note) delete notes[code];
    }
    write(meta, notes);
  };

  explorer.notesCard = (code, meta) => {
    const { kept = false, note = "" } = read(meta)[code] ?? {};
    const box = element("input", {
      type: "checkbox",
      checked: kept,
      change: ({ target }) => change(meta, { [code]: { kept: target.checked } }),
    });
    const text = element(
      "textarea",
      { rows: 2, "aria-label": "your note", input: ({ target }) => change(meta, { [code]: { note: target.value } }) },
      note,
    );
    return element(
      "section",
      { class: "card notes" },
      element("h2", {}, "Your notes"),
      element("p", { class: "hint" }, "Stored by this browser; the wall lists these codes and saves them as a file."),
      element("label", { class: "choice-line" }, box, " keep this code"),
      text,
    );
  };

  explorer.download = (text, name, type) => {
    const address = URL.createObjectURL(new Blob([text], { type }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  };

  // What a file holds, as notes. Throws an error that says what is wrong.
  const checked = (text, meta) => {
    const notes = JSON.parse(text)?.notes;
    const isOne = ([code, one]) =>
      /^(0|[1-9]\d*)$/.test(code) &&
      Number(code) < meta.num_codes &&
      typeof one?.kept === "boolean" &&
      typeof one.note === "string";
    if (notes?.constructor !== Object || !Object.entries(notes).every(isOne)) {
      throw new Error(`expected {"notes": {CODE: {"kept": true, "note": "..."}}}, codes below ${meta.num_codes}`);
    }
    return notes;
  };

  // A note with those lines of another below it that it has not.
  const joined = (mine, theirs) => {
    const added = mine ? theirs.split("\n").filter((line) => !mine.split("\n").includes(line)) : [theirs];
    return [mine, ...added].filter(Boolean).join("\n");
  };

  // Buttons that save the notes as JSON, and that read such a file; `onRead` is called when they have changed.
  explorer.notesButtons = (meta, onRead) => {
    const status = element("span", { class: "hint", role: "status" });
    const save = () => {
      const text = JSON.stringify({ title: meta.title, notes: read(meta) }, null, 1);
      explorer.download(text, "notes.json", "application/json");
    };
    const file = element("input", {
      type: "file",
      accept: ".json",
      hidden: true,
      "aria-label": "file of notes",
      change: async () => {
        const [chosen] = file.files;
        if (!chosen) return;
        try {
          const notes = checked(await chosen.text(), meta);
          const mine = read(meta);
          let numJoined = 0;
          // Nothing that is here already is lost.
          for (const [code, one] of Object.entries(notes)) {
            const note = joined(mine[code]?.note, one.note);
            numJoined += Boolean(mine[code]?.note) && note !== mine[code].note;
            notes[code] = { kept: one.kept || Boolean(mine[code]?.kept), note };
          }
          change(meta, notes);
          const added = numJoined ? `; ${numJoined} of them added below a note of yours` : "";
          status.textContent = `notes on ${explorer.formatPlural(Object.keys(notes).length, "code")} read${added}`;
          onRead();
        } catch (error) {
          status.textContent = `${chosen.name} holds no notes on these codes: ${error.message}`;
        }
        file.value = ""; // The same file can be read again.
      },
    });
    return [
      element("button", { type: "button", click: save }, "save notes"),
      element("button", { type: "button", click: () => file.click() }, "read notes"),
      file,
      status,
    ];
  };
})();
