"use strict";

// Questions to a model, where the explorer is served (python -m soho_fast.explore serve): an answer, and the image's
// patches shaded by the attention of [CLS] or of another token. What is asked stands in the address; a file does not,
// and stays while the page lives, nor does a very long text.
(() => {
  const { element } = explorer;

  const QUESTIONS = {
    rank: {
      title: "Which text fits?",
      texts: "Texts, one a line",
      hint: "a dog on the grass\na cat on a table",
      score: "How sure the model is that the text belongs to the image",
      recipe: "mini",
    },
    answer: {
      title: "Answer a question",
      texts: "Question",
      hint: "how many dogs are there?",
      score: "The model's probability of each answer",
      recipe: "mini_vqa",
    },
    entails: {
      title: "Does it follow?",
      texts: "Statement",
      hint: "an animal is there",
      score: "The model's probability of each label",
      recipe: "mini_snli_ve",
    },
    compare: {
      title: "Compare two images",
      texts: "Statement about left and right",
      hint: "both show a dog",
      score: "The model's probability of each answer",
      recipe: "mini_nlvr2",
    },
    codes: {
      title: "Which codes?",
      score: "The code of each patch, and the share of the patches that have it",
      recipe: "mini",
    },
  };
  const answers = (model, question) => question === "codes" || model.question === question;
  // An image that a browser can't show, such as a TIFF, is asked about all the same.
  const NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
  const FILE = "file";
  const LONGEST_IN_ADDRESS = 4000;
  const MOST_CAPTIONS = 8;

  const command = (text) => element("pre", { class: "command" }, element("code", {}, text));

  const notServed = (root) =>
    root.append(
      element("h1", {}, "Ask a model"),
      element(
        "div",
        { class: "notice", id: "not-served" },
        element("p", {}, "Questions need a model, and these pages are not served by one. Serve them from their run:"),
        command("python -m soho_fast.explore serve runs/mini"),
        element("p", {}, "with the folder of your run in the place of runs/mini, and open the address that it prints."),
      ),
    );

  const noModel = (question) => {
    const { recipe } = QUESTIONS[question];
    const from = recipe === "mini" ? "" : ` --recipe ${recipe} --model.pretrained runs/mini/model`;
    return element(
      "div",
      { class: "notice", id: "no-model" },
      element("p", {}, "No model for this question is at hand. This trains one:"),
      command(`deepspeed soho_fast/train.py${from}`),
      element("p", {}, "and this serves it beside the others:"),
      command(`python -m soho_fast.explore serve runs/mini${recipe === "mini" ? "" : ` runs/${recipe}`}`),
    );
  };

  const noEncoder = () =>
    element(
      "div",
      { class: "notice", id: "no-model" },
      element(
        "p",
        {},
        `This explorer was made from arrays: it knows the codes of its own ${explorer.noun}s, and has no encoder ` +
          `that finds those of another one. To see the codes of one more ${explorer.noun}, ` +
          (explorer.noun === "image"
            ? "serve the explorer with your own encoder, a function from an image to its codes:"
            : "encode it with your model, and build the explorer again with it and its codes among the others."),
      ),
      explorer.noun === "image"
        ? command('from soho_fast.explore import serve_explorer\nserve_explorer("explorer", encode)')
        : "",
    );

  // The files chosen last, left and right: an address can't hold them.
  const files = [null, null];

  // What is asked, as far as it stands in the address: {question, model, images, text, attend, token, layer}.
  const readQuestion = (parameters, server) => {
    const number = (name) => (/^\d+$/.test(parameters.get(name) ?? "") ? Number(parameters.get(name)) : null);
    const given = server.models.find(({ name }) => name === parameters.get("model"));
    const asked = parameters.get("question");
    const named = Object.hasOwn(QUESTIONS, asked ?? "") ? asked : server.models[0].question;
    const question = asked === "codes" ? asked : (given?.question ?? named);
    const image = (name, place) => (parameters.get(name) === FILE ? (files[place] ? FILE : null) : number(name));
    return {
      question,
      model: given?.name ?? server.models.find((model) => answers(model, question))?.name ?? null,
      images: [image("image", 0), image("right", 1)],
      text: parameters.get("text") ?? "",
      attend: number("attend"),
      token: number("token") ?? 0,
      layer: parameters.get("layer") === "mean" ? "mean" : number("layer"),
    };
  };

  const writeAddress = ({ question, model, images, text, attend, token, layer }) =>
    explorer.replaceAddress("ask", "", {
      question,
      model,
      image: images[0],
      right: question === "compare" ? images[1] : null,
      text: text.length <= LONGEST_IN_ADDRESS ? text : null,
      attend,
      token: token || null,
      layer,
    });

  const textsOf = ({ question, text }) =>
    question === "rank"
      ? text
          .split("\n")
          .map((line) => line.trim())
          .filter((line) => line !== "")
      : [text.trim()].filter((line) => line !== "");

  // {source, width, height, shown} of an image that is asked about.
  const lookAt = async (image, place) => {
    if (image !== FILE) {
      const { width, height } = await explorer.loadImage(image);
      return { source: explorer.imagePath(image), width, height, shown: true };
    }
    const { file, source } = files[place];
    const seen = new Image();
    seen.src = source;
    try {
      await seen.decode();
      return { source, width: seen.naturalWidth, height: seen.naturalHeight, shown: true };
    } catch {
      return { source: NOTHING, width: null, height: null, shown: false, name: file.name };
    }
  };

  // Where an image is chosen: a file, dropped or picked, or an image of the explorer.
  const imageChooser = (asked, place, meta, label, onChange) => {
    const preview = element("div", { class: "ask-preview" });
    const complaint = element("p", { class: "hint", role: "status" });
    const credit = element("div", { class: "ask-credit" });
    const number = element("input", {
      type: "number",
      min: 0,
      max: meta.num_shown - 1,
      "aria-label": `${label}: image number`,
      placeholder: "number",
    });
    const choose = (image) => {
      asked.images[place] = image;
      complaint.textContent = "";
      show();
      onChange();
    };
    const take = (file) => {
      if (!file) return;
      if (files[place]) URL.revokeObjectURL(files[place].source);
      files[place] = { file, source: URL.createObjectURL(file) };
      choose(FILE);
    };
    const show = async () => {
      const image = asked.images[place];
      number.value = typeof image === "number" ? image : "";
      credit.replaceChildren();
      if (image === null) {
        preview.replaceChildren(element("span", { class: "hint" }, "Drop an image here"));
        return;
      }
      try {
        const { source, shown, name } = await lookAt(image, place);
        if (asked.images[place] !== image) return;
        if (image !== FILE) credit.append(explorer.licenceLine(meta, (await explorer.loadImage(image)).licences));
        const alt = image === FILE ? files[place].file.name : `image ${image}`;
        preview.replaceChildren(
          shown
            ? element("img", { src: source, alt })
            : element("span", { class: "hint" }, `${name} (can't be shown here)`),
        );
      } catch (error) {
        complaint.textContent = error.message;
      }
    };
    number.addEventListener("change", () => {
      const chosen = Number(number.value);
      if (number.value !== "" && Number.isInteger(chosen) && chosen >= 0 && chosen < meta.num_shown) choose(chosen);
      else complaint.textContent = `Images have the numbers 0 to ${meta.num_shown - 1}.`;
    });
    const file = element("input", {
      type: "file",
      accept: "image/*",
      "aria-label": `${label}: file`,
      change: ({ target }) => take(target.files[0]),
    });
    const random = () => choose(Math.floor(Math.random() * meta.num_shown));
    const slot = element(
      "fieldset",
      {
        class: "ask-image",
        dragover: (event) => {
          event.preventDefault();
          slot.classList.add("over");
        },
        dragleave: () => slot.classList.remove("over"),
        drop: (event) => {
          event.preventDefault();
          slot.classList.remove("over");
          take(event.dataTransfer.files[0]);
        },
      },
      element("legend", {}, label),
      preview,
      element(
        "div",
        { class: "ask-choose" },
        element("label", { class: "button" }, "choose a file", file),
        meta.num_shown ? [number, element("button", { type: "button", click: random }, "random image")] : null,
      ),
      complaint,
      credit,
    );
    show();
    return slot;
  };

  const send = async (asked, server, signal) => {
    const form = new FormData();
    form.append("model", asked.model);
    let bytes = 0;
    for (const [place, image] of imagesOf(asked).entries()) {
      if (image === null) throw new Error(asked.question === "compare" ? "Choose two images." : "Choose an image.");
      if (image === FILE) bytes += files[place].file.size;
      form.append("image", image === FILE ? files[place].file : String(image));
    }
    if (bytes > server.upload_bytes) {
      throw new Error(`The upload has ${megabytes(bytes)} MB; expected at most ${megabytes(server.upload_bytes)} MB.`);
    }
    form.append("question", asked.question);
    const texts = asked.question === "codes" ? [] : textsOf(asked);
    if (asked.question !== "codes" && !texts.length) throw new Error("Write a text.");
    for (const text of texts) form.append("text", text);
    if (asked.attend !== null && asked.attend < texts.length) form.append("attend", String(asked.attend));
    let response;
    try {
      response = await fetch("ask", { method: "POST", body: form, signal });
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    const reply = await response.json().catch(() => ({ error: `the server said ${response.status}` }));
    if (!response.ok) throw new Error(reply.error);
    return reply;
  };

  const megabytes = (bytes) => explorer.formatNumber(bytes / 2 ** 20, 3);
  const imagesOf = ({ question, images }) => images.slice(0, question === "compare" ? 2 : 1);

  // Captions of the chosen image and of others, so that there is something to choose from.
  const someCaptions = async (asked, meta) => {
    const numbers = new Set(typeof asked.images[0] === "number" ? [asked.images[0]] : []);
    while (numbers.size < Math.min(MOST_CAPTIONS, meta.num_shown))
      numbers.add(Math.floor(Math.random() * meta.num_shown));
    const shown = await Promise.all([...numbers].map(explorer.loadImage));
    const captions = shown.flatMap(({ captions: [first] }) =>
      first ? [first.replace(/\s+/g, " ").slice(0, 300)] : [],
    );
    return captions.sort().join("\n");
  };

  const show = async (root, _, parameters, meta) => {
    const server = await explorer.load("server");
    if (server === null) return notServed(root);
    if (!server.models.length) {
      root.append(element("h1", {}, "Ask a model"), meta.model === "arrays" ? noEncoder() : noModel("rank"));
      return null;
    }
    const wall = await explorer.loadWall();
    const asked = readQuestion(parameters, server);
    const body = element("div", {});
    root.append(element("h1", {}, "Ask a model"), body, explorer.licenceLine(meta));
    let running = null;

    const ask = async (result, button) => {
      running?.abort();
      const mine = (running = new AbortController());
      window.addEventListener("hashchange", () => mine.abort(), { once: true, signal: mine.signal });
      const started = Date.now();
      const status = element("p", { class: "status", role: "status" });
      const tick = () => {
        const seconds = Math.floor((Date.now() - started) / 1000);
        const loading = seconds > 1 ? " (a model is loaded when it is first asked)" : "";
        status.textContent = `asking ${asked.model}${seconds ? ` for ${seconds} s` : ""}…${loading}`;
      };
      const timer = setInterval(tick, 500);
      tick();
      result.replaceChildren(status);
      button.disabled = true;
      try {
        const reply = await send(asked, server, mine.signal);
        if (mine !== running || mine.signal.aborted) return;
        const again = (number) => {
          Object.assign(asked, { attend: number, token: 0 });
          ask(result, button);
        };
        const level = asked.question === "codes" && meta.num_levels > 1 ? ", at level 1" : "";
        const view = element("div", {});
        result.replaceChildren(
          element("h2", {}, asked.question === "codes" ? "Its codes" : "Answer"),
          element(
            "p",
            { class: "hint" },
            `${QUESTIONS[asked.question].score}${level}; ${asked.model}, ${explorer.formatNumber(reply.seconds, 2)} s`,
          ),
          asked.question === "codes" ? "" : explorer.answerList(reply, again),
          view,
        );
        const looks = await Promise.all(imagesOf(asked).map(lookAt));
        if (asked.question === "codes") explorer.showCodes(view, { ...reply, looks, wall });
        else explorer.showAttention(view, asked, { ...reply, looks, wall }, () => writeAddress(asked));
        result.dataset.answered = String(Number(result.dataset.answered ?? 0) + 1); // Tells tests.
      } catch (error) {
        if (mine === running && !mine.signal.aborted) {
          result.replaceChildren(element("p", { class: "error", role: "alert", dir: "auto" }, error.message));
        }
      } finally {
        clearInterval(timer);
        if (mine === running) button.disabled = false;
      }
    };

    const fill = () => {
      const { question } = asked;
      const models = server.models.filter((model) => answers(model, question));
      const isCodes = question === "codes";
      // Of arrays no model of this project can be trained.
      const asks = Object.entries(QUESTIONS).filter(
        ([name]) => meta.model !== "arrays" || server.models.some((model) => answers(model, name)),
      );
      if (!models.some(({ name }) => name === asked.model)) asked.model = models[0]?.name ?? null;
      const choices = element(
        "div",
        { class: "choices", role: "radiogroup", "aria-label": "question" },
        asks.map(([name, { title }]) =>
          element(
            "label",
            { class: "choice" },
            element("input", {
              type: "radio",
              name: "question",
              value: name,
              checked: name === question,
              change: () => {
                Object.assign(asked, { question: name, attend: null, token: 0, layer: null });
                fill();
                writeAddress(asked);
                body.querySelector(`input[value="${name}"]`).focus();
              },
            }),
            element("span", {}, title),
          ),
        ),
      );
      const controls = element("div", { class: "controls" }, choices);
      if (!models.length) {
        body.replaceChildren(controls, noModel(question));
        return;
      }
      if (models.length > 1) {
        const options = models.map(({ name, kind }) =>
          element("option", { value: name, selected: name === asked.model }, `${name} (${kind})`),
        );
        const change = ({ target }) => {
          asked.model = target.value;
          writeAddress(asked);
        };
        controls.append(element("label", {}, "model ", element("select", { change }, options)));
      }
      const changed = () => {
        asked.attend = null;
        asked.token = 0;
        writeAddress(asked);
        // An image is the whole question.
        if (isCodes && asked.images[0] !== null) ask(result, button);
      };
      const labels = question === "compare" ? ["Left image", "Right image"] : ["Image"];
      const choosers = labels.map((label, place) => imageChooser(asked, place, meta, label, changed));
      const isRank = question === "rank";
      const texts = element(isRank ? "textarea" : "input", {
        id: "ask-text",
        class: "ask-text",
        rows: isRank ? 5 : null,
        type: isRank ? null : "text",
        placeholder: QUESTIONS[question].hint,
        dir: "auto",
        input: ({ target }) => Object.assign(asked, { text: target.value, attend: null, token: 0 }),
        // Not with every key: browsers bound how often an address may change.
        change: changed,
      });
      texts.value = asked.text;
      const captions = async () => {
        texts.value = asked.text = await someCaptions(asked, meta);
        changed();
      };
      const button = element("button", { type: "submit", class: "ask-button" }, "Ask");
      const result = element("section", { class: "ask-result", "aria-live": "polite" });
      const submit = (event) => {
        event.preventDefault();
        ask(result, button);
      };
      // A textarea keeps Enter for itself.
      texts.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) button.click();
      });
      const form = element(
        "form",
        { class: "ask-form", submit },
        element("div", { class: "ask-images" }, choosers),
        element(
          "div",
          { class: "ask-words" },
          isCodes ? null : [element("label", { for: "ask-text" }, QUESTIONS[question].texts), texts],
          element(
            "div",
            { class: "ask-choose" },
            button,
            isRank && meta.has_captions
              ? element("button", { type: "button", click: captions }, "some captions")
              : null,
          ),
        ),
      );
      body.replaceChildren(controls, form, result);
      if ((isCodes || textsOf(asked).length) && imagesOf(asked).every((image) => image !== null)) ask(result, button);
    };
    fill();
    return null;
  };

  explorer.pages.set("ask", { title: "Ask", show });
})();
