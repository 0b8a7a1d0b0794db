"use strict";

// Codes to keep and notes on them, by a reader, kept by the browser for each explorer; as a file they can be passed on.
(() => {
  const { element } = explorer;
  let memory = {}; // Where the browser keeps nothing for a page from a disk.

  const keyOf = (meta) => `explorer: notes: ${meta.title}, ${meta.num_codes}, ${meta.weights}`;
  const read = (meta) => {
    try {
      return JSON.parse(localStorage.getItem(keyOf(meta))) ?? {};
    } catch {
      return memory;
    }
  };
  const write = (meta, notes) => {
    memory = notes;
    explorer.stored((storage) => storage.setItem(keyOf(meta), JSON.stringify(notes)));
  };

  // {code: {kept, note}} of the codes that have one of them.
  explorer.notes = read;

  const change = (meta, code, values) => {
    const notes = read(meta);
    notes[code] = { kept: false, note: "", ...notes[code], ...values };
    if (!notes[code].kept && !notes[code].note) delete notes[code];
    write(meta, notes);
  };

  explorer.notesCard = (code, meta) => {
    const { kept = false, note = "" } = read(meta)[code] ?? {};
    const box = element("input", {
      type: "checkbox",
      checked: kept,
      change: ({ target }) => change(meta, code, { kept: target.checked }),
    });
    const text = element(
      "textarea",
      { rows: 2, "aria-label": "your note", input: ({ target }) => change(meta, code, { note: target.value }) },
      note,
    );
    return element(
      "section",
      { class: "card notes" },
      element("h2", {}, "Your notes"),
      element("p", { class: "hint" }, "Kept by this browser; the wall lists these codes and saves them as a file."),
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
    const isOne = ([code, { kept, note }]) =>
      /^\d+$/.test(code) && Number(code) < meta.num_codes && typeof kept === "boolean" && typeof note === "string";
    if (typeof notes !== "object" || !Object.entries(notes ?? {}).every(isOne)) {
      throw new Error(`expected {"notes": {CODE: {"kept": true, "note": "..."}}}, codes below ${meta.num_codes}`);
    }
    return notes;
  };

  // Buttons that save the notes as JSON, and that read such a file; `onRead` is called when they have changed.
  explorer.notesButtons = (meta, onRead) => {
    const status = element("span", { class: "hint", role: "status" });
    const save = () =>
      explorer.download(JSON.stringify({ title: meta.title, notes: read(meta) }, null, 1), "notes.json", "text/json");
    const file = element("input", {
      type: "file",
      accept: ".json",
      hidden: true,
      "aria-label": "file of notes",
      change: async () => {
        try {
          const notes = checked(await file.files[0].text(), meta);
          write(meta, { ...read(meta), ...notes });
          status.textContent = `notes on ${explorer.formatPlural(Object.keys(notes).length, "code")} read`;
          onRead();
        } catch (error) {
          status.textContent = `${file.files[0].name} holds no notes on these codes: ${error.message}`;
        }
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
