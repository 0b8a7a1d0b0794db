"""The page that asks, before a real server with models: answers, attention, uploads, and what it says without one."""

import json

import numpy as np
import pytest
from loopback import Served, serve

from soho_fast.explore import Clip, build_from_arrays, encoder, serve_explorer

MODELS = ("rank", "answer", "compare", "entails")


@pytest.fixture(scope="module")
def asked(runs, bundle_folder):
    serving = serve(runs, bundle_folder, MODELS)
    yield serving
    serving.close()


@pytest.fixture
def window(asked, open_window):
    return open_window(asked.asking.shown.bundle.folder, base=f"{asked.address}/")


class Replies:
    """What the server answers to the page from here on, in order."""

    def __init__(self, window):
        self._window, self._found = window, []
        window.page.on("response", lambda response: response.url.endswith("/ask") and self._found.append(response))

    def __getitem__(self, number):
        """One of them, which may be later here than in the page."""
        for _ in range(500):
            if len(self._found) > number:
                return self._found[number].json()
            self._window.page.wait_for_timeout(10)
        raise IndexError(number)


def open_question(window, address):
    """As `visit`, of an address that asks: the page writes it anew when the answer is there."""
    window.page.goto("about:blank")
    window.page.goto(window.base + address)
    window.page.wait_for_selector("body[data-shown]")


def wait_for_answer(window, times=1):
    window.page.wait_for_selector(f'.ask-result[data-answered="{times}"]')


def shades(window, place=0):
    return (
        window.page.locator(".ask-view .patches")
        .nth(place)
        .evaluate(
            "root => [...root.querySelectorAll('.patch')].map(patch => Number(patch.style.getPropertyValue('--shade')))"
        )
    )


def shares(reply, token, layer=-1, place=0):
    """What the reply says, as shades: the brightest patch of all images is 1."""
    images = [image["attention"][layer][token] for image in reply["images"]]
    most = max(max(each) for each in images)
    return [share / most for share in images[place]]


def test_an_image_of_the_explorer_is_ranked_and_shaded(window):
    replies = Replies(window)
    window.visit("#/ask?image=1")
    assert window.page.locator(".ask-preview img").get_attribute("src") == "images/0000/000001.jpg"
    assert "Images: pictures: by hand; CC0" in window.page.locator(".ask-image").inner_text()
    window.page.fill("#ask-text", "a red man\n\n  the woman is blue \n")
    window.page.click(".ask-button")
    wait_for_answer(window)
    reply = replies[0]
    rows = window.page.locator(".ask-answer")
    assert [row.split("\n") for row in rows.all_inner_texts()] == [
        [answer["text"], f"{100 * answer['score']:.1f} %"] for answer in reply["answers"]
    ]
    widths = window.page.eval_on_selector_all(".ask-bar > span", "bars => bars.map(bar => parseFloat(bar.style.width))")
    assert widths == pytest.approx([100 * answer["score"] for answer in reply["answers"]], rel=1e-4)
    tokens = window.page.locator(".ask-tokens button")
    assert tokens.all_inner_texts() == reply["tokens"]
    # [CLS] first, then the word that is chosen: never the same.
    assert shades(window) == pytest.approx(shares(reply, 0), abs=1e-6)
    tokens.nth(2).click()
    assert shades(window) == pytest.approx(shares(reply, 2), abs=1e-6) != pytest.approx(shares(reply, 0), abs=1e-2)
    assert tokens.nth(2).get_attribute("aria-pressed") == "true"
    window.page.select_option(".ask-whose select", "0")
    assert shades(window) == pytest.approx(shares(reply, 2, layer=0), abs=1e-6)
    window.page.select_option(".ask-whose select", "mean")
    mean = [sum(layers) / 2 for layers in zip(*(layer[2] for layer in reply["images"][0]["attention"]), strict=True)]
    assert shades(window) == pytest.approx([share / max(mean) for share in mean], abs=1e-5)
    # The address has it all.
    address, before = window.address(), (window.text(), shades(window))
    open_question(window, address)
    wait_for_answer(window)
    after = (window.text(), shades(window))
    assert after[1] == before[1] and window.address() == address
    # Another text's attention.
    window.page.select_option(".ask-whose select", "1")
    window.page.locator('.ask-answer[aria-pressed="false"]').click()
    wait_for_answer(window, 2)
    other = replies[2]  # The first was asked twice, by the button and by the address.
    assert other["attended"] != reply["attended"] and other["answers"] == reply["answers"]
    assert shades(window) == pytest.approx(shares(other, 0), abs=1e-6)


def test_from_the_answer_to_what_a_code_means_by_clicks(window):
    replies = Replies(window)
    open_question(window, "#/ask?image=2&text=a+red+man")
    wait_for_answer(window)
    reply = replies[0]
    (image,) = reply["images"]
    window.page.locator(".ask-tokens button").nth(2).click()
    row = image["attention"][-1][2]
    brightest = max(range(len(row)), key=row.__getitem__)
    code = image["codes"][brightest]
    patch = window.page.locator(f'.ask-view .patch[data-patch="{brightest}"]')
    patch.hover()
    status = window.page.locator(".ask-view .status").inner_text()
    assert status.startswith(f"code {code} · word{code} · ") and status.endswith("% of the attention")
    by_code = {}
    for each, share in zip(image["codes"], row, strict=True):
        by_code[each] = by_code.get(each, 0) + share
    chips = window.page.locator(".ask-view .chip").evaluate_all("chips => chips.map(chip => chip.hash)")
    assert chips == [f"#/code/{each}" for each in sorted(by_code, key=by_code.get, reverse=True)[:6]]
    patch.click()
    window.wait()
    assert window.address() == f"#/code/{code}" and f"Code {code}" in window.text()
    window.page.go_back()
    wait_for_answer(window)
    assert window.page.locator('.ask-tokens [aria-pressed="true"]').inner_text() == reply["tokens"][2]


def test_an_upload_is_shown_asked_about_and_kept_while_the_page_lives(window, photo, runs):
    from soho_fast.ask import SohoPipeline

    replies = Replies(window)
    window.visit("#/ask?question=answer")
    window.page.set_input_files('input[type="file"]', photo)
    preview = window.page.locator(".ask-preview img")
    assert preview.get_attribute("src").startswith("blob:")
    assert preview.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        100,
        70,
    ]
    window.page.fill("#ask-text", "is there a man")
    window.page.keyboard.press("Enter")
    wait_for_answer(window)
    expected = SohoPipeline.from_pretrained(runs / "answer").answer(photo, "is there a man")
    texts = [f"{row['answer']}\n{100 * row['score']:.1f} %" for row in expected]
    assert window.page.locator(".ask-answer").all_inner_texts() == texts
    assert "The model saw the uploaded image." in window.text()
    assert "images 100 % of the patches have the same code by this model." in window.text()
    assert shades(window) == pytest.approx(shares(replies[0], 0), abs=1e-6)
    window.click(".ask-view .chip")
    assert window.address().startswith("#/code/")
    window.page.go_back()
    wait_for_answer(window)
    # Some processors add float32 in an order that depends on where arrays lie.
    first, again = ({row["answer"]: row["score"] for row in reply["answers"]} for reply in (replies[0], replies[1]))
    assert again == pytest.approx(first, abs=1e-6)


def test_the_address_is_not_written_with_every_key_and_stays_short(window):
    window.visit("#/ask?question=answer&image=0")
    window.page.locator("#ask-text").press_sequentially("is there a man " * 4)
    assert window.address() == "#/ask?question=answer&image=0"
    window.page.keyboard.press("Tab")
    assert window.address() == f"#/ask?question=answer&model=answer&image=0&text={'is+there+a+man+' * 4}"
    window.page.fill("#ask-text", "is there a man " * 1000)
    window.page.click(".ask-button")
    window.page.wait_for_selector(".ask-result .error:has-text('text: expected at most 16 tokens, got 4')")
    assert window.address() == "#/ask?question=answer&model=answer&image=0"
    window.complaints[:] = [line for line in window.complaints if "status of 400" not in line]


def test_an_image_can_be_dropped(window):
    window.visit("#/ask")
    window.page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
            const file = new File([await new Promise((done) => canvas.toBlob(done))], "<b>.png");
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(file);
            document.querySelector(".ask-image").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    window.page.wait_for_selector('.ask-preview img[src^="blob:"]')
    assert window.page.locator(".ask-preview img").get_attribute("alt") == "<b>.png"
    assert window.address() == "#/ask?question=rank&model=rank&image=file"


def test_an_answer_that_comes_when_the_page_was_left_changes_nothing(window):
    held = []
    window.page.route("**/ask", lambda route: held.append(route))
    window.visit("#/ask?question=rank&image=0")
    window.page.fill("#ask-text", "a red man")
    window.page.click(".ask-button")
    while not held:
        window.page.wait_for_timeout(10)
    window.click('header a[href="#/wall"]')
    answer = {"answers": [], "tokens": ["[CLS]"], "attended": 0, "reads": "codes", "seconds": 1, "no_codes": None}
    image = {"rows": 1, "columns": 1, "patches_high": 1, "patches_wide": 1, "codes": [1], "attention": [[[0.5]]]}
    answer["images"] = [{**image, "seen": "upload", "number": 0}]
    held[0].fulfill(json=answer)
    window.page.wait_for_timeout(300)
    assert window.address() == "#/wall" and window.page.locator(".tile").count() == 8


def test_two_images_are_compared(window):
    replies = Replies(window)
    open_question(window, "#/ask?question=compare&image=0&right=2&text=both+red")
    wait_for_answer(window)
    reply = replies[0]
    assert [image["number"] for image in reply["images"]] == [0, 2]
    for place in (0, 1):
        assert shades(window, place) == pytest.approx(shares(reply, 0, place=place), abs=1e-6)
    assert max(shades(window, 0) + shades(window, 1)) == 1
    assert window.page.locator(".ask-image").count() == 2


def test_patches_without_codes_are_shaded_and_lead_nowhere(window):
    replies = Replies(window)
    open_question(window, "#/ask?question=entails&image=0&text=a+red+man")
    wait_for_answer(window)
    assert window.page.locator("#no-codes").inner_text() == (
        "Patches name no codes: the codes shown here are of another codebook than this model's."
    )
    assert shades(window) == pytest.approx(shares(replies[0], 0), abs=1e-6)
    links = window.page.locator(".ask-view a").evaluate_all("links => links.map(link => link.hash)")
    assert links == ["#/image/0"]
    window.page.locator(".ask-view .patch").first.hover()
    assert window.page.locator(".ask-view .status").inner_text().endswith("% of the attention")


def test_which_codes_an_image_has_is_asked_by_the_image_alone(window, photo):
    replies = Replies(window)
    open_question(window, "#/ask?question=codes")
    assert window.page.locator("#ask-text").count() == 0
    window.page.set_input_files('input[type="file"]', photo)
    wait_for_answer(window)
    codes = replies[0]["images"][0]["codes"]
    links = window.page.locator(".ask-view .patch").evaluate_all("links => links.map(link => link.hash)")
    assert links == [f"#/code/{code}" for code in codes] and codes
    chips = window.page.locator(".ask-view .chip").all_inner_texts()
    assert len(chips) == len(set(codes)) and all("word" in chip and "%" in chip for chip in chips)
    window.page.locator(".ask-view .patch").first.hover()
    assert window.page.locator(".ask-view .status").inner_text() == f"code {codes[0]} · word{codes[0]}"
    window.page.fill('input[type="number"]', "1")
    window.page.keyboard.press("Tab")
    wait_for_answer(window)
    assert replies[1]["images"][0]["number"] == 1 and window.address() == "#/ask?question=codes&model=rank&image=1"


def test_some_captions_to_choose_from(window):
    window.visit("#/ask?image=0")
    window.page.get_by_role("button", name="some captions").click()
    assert window.page.locator("#ask-text").input_value() == "a red man\na red man\na red man"
    window.page.get_by_role("button", name="random image").click()
    window.page.fill('input[type="number"]', "7")
    window.page.keyboard.press("Tab")
    assert "Images have the numbers 0 to 2." in window.text()


COMMANDS = {
    "answer": "deepspeed soho_fast/train.py --recipe mini_vqa --model.pretrained runs/mini/model",
    "entails": "deepspeed soho_fast/train.py --recipe mini_snli_ve --model.pretrained runs/mini/model",
    "compare": "deepspeed soho_fast/train.py --recipe mini_nlvr2 --model.pretrained runs/mini/model",
}


def test_where_a_question_has_no_model_the_command_that_trains_one_is_told(runs, bundle_folder, open_window):
    serving = serve(runs, bundle_folder, ["rank"])
    try:
        window = open_window(bundle_folder, base=f"{serving.address}/")
        window.visit("#/ask")
        for question, command in COMMANDS.items():
            window.page.locator(f'.choice:has(input[value="{question}"])').click()
            assert command in window.page.locator("#no-model").inner_text()
            assert window.address() == f"#/ask?question={question}"
        window.visit("#/ask?question=compare")
        assert COMMANDS["compare"] in window.text()
    finally:
        serving.close()


def test_a_page_that_is_not_served_says_how_to_serve_it(bundle_folder, runs, open_window):
    window = open_window(bundle_folder)
    window.visit("#/ask?image=1&text=a+red+man")
    assert "python -m soho_fast.explore serve runs/mini" in window.page.locator("#not-served").inner_text()
    serving = serve(runs, bundle_folder)
    try:
        window = open_window(bundle_folder, base=f"{serving.address}/")
        window.visit("#/ask")
        assert "No model for this question is at hand" in window.text()
    finally:
        serving.close()


@pytest.mark.parametrize("noun", ["image", "clip"])
def test_an_explorer_of_arrays_says_that_it_has_no_encoder(tmp_path, open_window, noun):
    index, images = np.zeros((2, 1, 2), int), np.zeros((2, 8, 16, 3), np.uint8)
    images = images if noun == "image" else [Clip(np.zeros(8000), 8000)] * 2
    folder = build_from_arrays(index=index, images=images, folder=tmp_path / "explorer", say=lambda line: None)
    serving = serve(tmp_path, folder)
    try:
        window = open_window(folder, base=f"{serving.address}/")
        window.visit("#/ask")
        text = window.text()
        assert "has no encoder" in text and f"of one more {noun}," in text and "deepspeed" not in text
        assert ('serve_explorer("explorer", encode)' in text) == (noun == "image")
        assert noun == "image" or "image" not in text
    finally:
        serving.close()


def test_an_explorer_of_arrays_shows_codes_by_the_users_function(tmp_path, open_window, photo, monkeypatch):
    index, images = np.zeros((2, 2, 2), int), np.zeros((2, 8, 8, 3), np.uint8)
    folder = build_from_arrays(index=index, num_codes=3, images=images, folder=tmp_path / "made", say=lambda line: None)

    def shows_codes(asking, *where):
        serving = Served(asking)
        try:
            window = open_window(folder, base=f"{serving.address}/")
            window.visit("#/ask")
            assert window.page.locator(".choice").all_inner_texts() == ["Which codes?"]
            window.page.set_input_files('input[type="file"]', photo)
            wait_for_answer(window)
            assert [text.split()[0] for text in window.page.locator(".ask-view .chip").all_inner_texts()] == ["2", "0"]
            assert "have the same code" not in window.text() and "Patches name no codes" not in window.text()
            served.append(serving.address)
        finally:
            serving.close()

    served = []
    monkeypatch.setattr(encoder, "serve", shows_codes)
    serve_explorer(folder, lambda image: np.array([[0, -1, 2], [2, 2, 2]]))
    assert served


def test_what_is_wrong_is_told_on_the_page(window, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    hostile.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 2**21)
    window.visit("#/ask")

    def says(words):
        window.page.click(".ask-button")
        window.page.wait_for_selector(f".ask-result .error:has-text({json.dumps(words)})")

    says("Choose an image.")
    window.page.set_input_files('input[type="file"]', large)
    says("The upload has 2 MB; expected at most 1 MB.")
    window.page.set_input_files('input[type="file"]', hostile)
    window.page.wait_for_selector('.ask-preview:has-text("can\'t be shown here")')
    says("Write a text.")
    window.page.fill("#ask-text", "<script>alert(1)</script>")
    says("image: can't be decoded as an image (71 bytes)")
    # That there is an error is what is tested.
    window.complaints[:] = [line for line in window.complaints if "status of 400" not in line]


def test_a_server_that_went_away_is_told(runs, bundle_folder, open_window):
    serving = serve(runs, bundle_folder, ["rank"])
    window = open_window(bundle_folder, base=f"{serving.address}/")
    window.visit("#/ask?image=0")
    window.page.wait_for_selector(".ask-preview img")
    window.page.fill("#ask-text", "a red man")
    serving.close()
    window.page.click(".ask-button")
    window.page.wait_for_selector(".ask-result .error:has-text('The server does not answer. Is it still running?')")
    window.complaints[:] = [line for line in window.complaints if "ERR_CONNECTION_REFUSED" not in line]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width_by_keys_alone(window, asked, open_window, scheme):
    phone = open_window(
        asked.asking.shown.bundle.folder,
        base=f"{asked.address}/",
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
    )
    phone.visit("#/ask?question=answer&image=1")
    phone.page.locator("#ask-text").focus()
    phone.page.keyboard.type("is there a man")
    phone.page.keyboard.press("Enter")
    wait_for_answer(phone)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.page.locator(".ask-tokens button").first.focus()
    phone.page.keyboard.press("Tab")
    phone.page.keyboard.press("Enter")
    assert phone.page.locator('.ask-tokens [aria-pressed="true"]').inner_text() == "is"
    patch = phone.page.locator('.ask-view .patch[tabindex="0"]')
    patch.focus()
    phone.page.keyboard.press("ArrowRight")
    assert phone.page.evaluate("document.activeElement.dataset.patch") == "1"
    assert phone.page.locator(".ask-view .status").inner_text().startswith("code ")
    phone.press("Enter")
    assert phone.address().startswith("#/code/")
    open_question(phone, "#/ask?question=codes&image=1")
    wait_for_answer(phone)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    rights = phone.page.locator(".choice").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
    assert len(rights) == 5 and max(rights) <= 390, "every question can be seen"
