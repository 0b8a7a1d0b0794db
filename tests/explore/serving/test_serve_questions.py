"""Questions to a served model: what comes back, what is refused and how, one question at a time, none too long."""

import logging
import shutil
import threading
import time

import pytest
from loopback import serve

from soho_fast.ask import SohoPipeline
from soho_fast.explore import asking
from soho_fast.explore.bundle import Bundle, BundleError, image_path, write_in_files
from soho_fast.explore.serve import at_hand
from soho_fast.explore.shown import ShownImages


def test_every_kind_of_model_is_there_to_be_asked():
    from soho_fast import model

    assert all(issubclass(getattr(model, name), model.SohoPreTrainedModel) for name in asking.MODELS)


def test_rank_an_upload(served, runs, photo):
    texts = ["a red man", "the woman is blue", "is there a sheet"]
    reply = served.ask(("model", "rank"), ("image", ("photo.png", photo.read_bytes())), *(("text", t) for t in texts))
    assert reply.status == 200, reply.body
    found = reply.json
    expected = SohoPipeline.from_pretrained(runs / "rank").rank(photo, texts)
    assert [row["text"] for row in found["answers"]] == [row["text"] for row in expected]
    assert [row["score"] for row in found["answers"]] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    assert (found["model"], found["question"], found["reads"]) == ("rank", "rank", "codes")
    assert found["tokens"] == ["[CLS]", *texts[found["attended"]].split()]
    (image,) = found["images"]
    assert (image["seen"], image["number"], image["rows"], image["columns"]) == ("upload", None, 2, 3)
    assert len(image["codes"]) == 6 and set(image["codes"]) <= set(range(8)) and found["no_codes"] is None
    chosen = served.ask(
        ("model", "rank"), ("image", ("x", photo.read_bytes())), *(("text", t) for t in texts), ("attend", "2")
    )
    assert chosen.json["tokens"] == ["[CLS]", *texts[2].split()] and chosen.json["answers"] == found["answers"]


def test_answer_about_an_image_of_the_bundle(served, runs, bundle_folder):
    found = served.ask(("model", "answer"), ("image", "1"), ("text", "is there a man"), ("question", "answer")).json
    expected = SohoPipeline.from_pretrained(runs / "answer").answer(bundle_folder / image_path(1), "is there a man")
    assert [row["answer"] for row in found["answers"]] == [row["answer"] for row in expected]
    assert [row["score"] for row in found["answers"]] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    (image,) = found["images"]
    assert (image["seen"], image["number"], found["reads"]) == ("small copy", 1, "features")
    other = served.ask(("model", "answer"), ("image", "2"), ("text", "is there a man")).json
    assert other["answers"] != found["answers"]


def test_compare_left_and_right(served, runs, bundle_folder, photo):
    found = served.ask(
        ("model", "compare"), ("image", "0"), ("image", ("p", photo.read_bytes())), ("text", "both red")
    ).json
    expected = SohoPipeline.from_pretrained(runs / "compare").compare(bundle_folder / image_path(0), photo, "both red")
    assert {row["label"]: row["score"] for row in found["answers"]} == pytest.approx(
        {row["label"]: row["score"] for row in expected}, abs=1e-6
    )
    assert [image["seen"] for image in found["images"]] == ["small copy", "upload"]
    back = served.ask(
        ("model", "compare"), ("image", ("p", photo.read_bytes())), ("image", "0"), ("text", "both red")
    ).json
    assert back["answers"] != found["answers"] and back["images"][1]["codes"] == found["images"][0]["codes"]


def test_codes_are_given_only_where_they_are_the_explorers(served, runs, bundle_folder):
    bundle = Bundle(bundle_folder)
    for name in ("rank", "answer"):
        found = served.ask(("model", name), ("image", "1"), ("text", "a red man")).json
        assert found["images"][0]["codes"] == bundle.image(1)["index"] and found["agreement"] == 1.0
    serving = serve(runs, bundle_folder, ["moved"])
    try:
        moved = serving.ask(("model", "moved"), ("image", "1"), ("text", "a red man")).json
        assert moved["images"][0]["codes"] is None and moved["agreement"] < 0.5
        share = f"({100 * moved['agreement']:.0f} % of the patches agree)"
        assert moved["no_codes"].endswith(f"has moved its features away from the codes {share}")
    finally:
        serving.close()
    entails = served.ask(("model", "entails"), ("image", "0"), ("text", "a red man")).json
    assert entails["images"][0]["codes"] is None and "another codebook" in entails["no_codes"]
    retrieval = served.ask(("model", "retrieval"), ("image", "0"), ("text", "a red man")).json
    assert retrieval["images"][0]["codes"] is None and "no dictionary" in retrieval["no_codes"]
    for reply in (entails, retrieval):
        assert len(reply["images"][0]["attention"][0][0]) == reply["images"][0]["rows"] * reply["images"][0]["columns"]


def test_which_codes_an_image_has_needs_no_text(served, bundle_folder, photo):
    """Of any model with the explorer's dictionary, also one for another question."""
    asked = ("image", ("photo.png", photo.read_bytes()))
    expected = served.ask(("model", "rank"), asked, ("text", "a red man")).json["images"][0]
    for name in ("rank", "answer", "compare"):
        found = served.ask(("model", name), asked, ("question", "codes")).json
        assert (found["question"], found["no_codes"]) == ("codes", None) and "answers" not in found
        assert found["images"] == [{**{k: v for k, v in expected.items() if k != "attention"}}]
    found = served.ask(("model", "rank"), ("image", "1"), ("question", "codes")).json
    assert found["images"][0]["codes"] == Bundle(bundle_folder).image(1)["index"]
    found = served.ask(("model", "entails"), asked, ("question", "codes")).json
    assert found["images"][0]["codes"] is None and "another codebook" in found["no_codes"]


def test_agreement_is_counted_over_patches_of_images_with_the_same_grid(bundle_folder, tmp_path):
    shutil.copytree(bundle_folder, tmp_path / "explorer")
    bundle = Bundle(tmp_path / "explorer")
    pictures = bundle.read("images-0000")
    shown = ShownImages(bundle)
    codes = {shown.read(number)[0]: pictures[number]["index"] for number in range(3)}
    assert shown.agreement(lambda file: (2, 3, codes[file])) == 1.0
    pictures[0]["index"] = [(code + 1) % 8 for code in pictures[0]["index"][:3]] + pictures[0]["index"][3:]
    pictures[1]["rows"] = 5
    write_in_files(tmp_path / "explorer", "images", pictures, 256)
    assert shown.agreement(lambda file: (2, 3, codes[file])) == 9 / 12
    assert shown.agreement(lambda file: (3, 2, codes[file])) is None
    (tmp_path / "explorer" / image_path(0)).write_bytes(b"no image")

    def codes_of(file):
        if file == b"no image":
            raise ValueError
        return 2, 3, codes[file]

    assert shown.agreement(codes_of) == 1.0


MODEL, IMAGE, TEXT = ("model", "rank"), ("image", "0"), ("text", "a red man")

REFUSED = [
    ([], 404, "model: there is no ''; at hand: rank, retrieval, answer, compare, entails"),
    ([("model", "<script>"), IMAGE, TEXT], 404, "model: there is no '<script>'"),
    ([MODEL, MODEL, IMAGE, TEXT], 400, "model: expected one, got 2"),
    ([("model", ("m", b"rank")), IMAGE, TEXT], 400, "model: expected a text, got a file"),
    ([MODEL, IMAGE], 400, "text: rank takes 1 to 100, got 0"),
    ([MODEL, IMAGE, *[TEXT] * 101], 400, "text: rank takes 1 to 100, got 101"),
    ([MODEL, IMAGE, *[TEXT] * 500], 400, "Too many fields"),
    ([("model", "answer"), IMAGE, TEXT, TEXT], 400, "text: answer takes 1, got 2"),
    ([MODEL, IMAGE, ("text", " \t\n")], 400, "text 1 is empty"),
    ([MODEL, IMAGE, TEXT, ("text", "")], 400, "text 2 is empty"),
    ([MODEL, IMAGE, ("text", ("t", b"a red man"))], 400, "text: expected a text, got a file"),
    ([MODEL, IMAGE, ("text", "\N{DOG FACE}")], 400, "holds no word that this model knows"),
    ([MODEL, IMAGE, ("text", "zebra quagga okapi")], 400, "'zebra quagga okapi' holds no word that this model knows"),
    ([MODEL, IMAGE, ("text", "a " * 30)], 400, "text: expected at most 16 tokens, got 32"),
    ([MODEL, IMAGE, ("text", "word " * 10_000)], 400, "Part exceeded maximum size of 39KB"),
    ([MODEL, IMAGE, ("text", "a " * 9_000)], 400, "text: expected at most 16 tokens, got 9002"),
    ([MODEL, TEXT], 400, "image: rank takes 1, got 0"),
    ([MODEL, IMAGE, IMAGE, TEXT], 400, "image: rank takes 1, got 2"),
    ([("model", "compare"), IMAGE, TEXT], 400, "image: compare takes 2, got 1"),
    ([MODEL, ("image", "3"), TEXT], 400, "image: expected a file, or the number of an image, 0 to 2, got '3'"),
    ([MODEL, ("image", "-1"), TEXT], 400, "0 to 2, got '-1'"),
    ([MODEL, ("image", "0x1"), TEXT], 400, "0 to 2, got '0x1'"),
    ([MODEL, ("image", "\u0661"), TEXT], 400, r"0 to 2, got '\u0661'"),
    ([MODEL, ("image", "9" * 5000), TEXT], 400, "0 to 2, got '999"),
    ([MODEL, ("image", "../../secret.txt"), TEXT], 400, "0 to 2, got '../../secret.txt'"),
    ([MODEL, ("image", "/etc/passwd"), TEXT], 400, "0 to 2, got '/etc/passwd'"),
    ([MODEL, IMAGE, TEXT, ("attend", "1")], 400, "attend: expected a number, 0 to 0, got '1'"),
    ([MODEL, IMAGE, TEXT, ("attend", "red")], 400, "attend: expected a number, 0 to 0, got 'red'"),
    (
        [MODEL, IMAGE, TEXT, ("question", "answer")],
        400,
        "rank is for pre-training: expected rank or codes, got 'answer'",
    ),
    ([MODEL, IMAGE, TEXT, ("question", "codes")], 400, "text: codes takes 0, got 1"),
    ([MODEL, IMAGE, IMAGE, ("question", "codes")], 400, "image: codes takes 1, got 2"),
    ([MODEL, IMAGE, TEXT, ("path", "/etc/passwd")], 400, "'path': there is no such field"),
]


@pytest.mark.parametrize(("fields", "status", "words"), REFUSED)
def test_what_cannot_be_asked_is_one_line(served, fields, status, words):
    reply = served.ask(*fields)
    assert reply.status == status and words in reply.error


def test_a_server_without_models_says_how_to_have_one(bundle_folder, tmp_path):
    serving = serve(bundle_folder, bundle_folder)
    try:
        assert "at hand: none: serve RUN" in serving.ask(MODEL, IMAGE, TEXT).error
    finally:
        serving.close()


def test_images_that_are_gone_or_lead_out(runs, bundle_folder, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(bundle_folder, folder)
    (folder / image_path(0)).unlink()
    (folder / image_path(1)).unlink()
    shutil.copy(folder / image_path(2), tmp_path / "secret.jpg")
    (folder / image_path(1)).symlink_to(tmp_path / "secret.jpg")
    serving = serve(runs, folder, ["rank"])
    try:
        gone = serving.ask(MODEL, ("image", "0"), TEXT)
        assert gone.status == 500 and "000000.jpg can't be read; build the explorer again" in gone.error
        away = serving.ask(MODEL, ("image", "1"), TEXT)
        assert away.status == 500 and "leads out of the explorer" in away.error
        assert serving.ask(MODEL, ("image", "2"), TEXT).status == 200
    finally:
        serving.close()


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(runs, bundle_folder, tmp_path):
    shutil.copytree(runs / "rank", tmp_path / "rank")
    weights = tmp_path / "rank" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    serving = serve(tmp_path, bundle_folder, ["rank"])
    try:
        damaged = serving.ask(MODEL, IMAGE, TEXT)
        assert damaged.status == 500 and "rank can't be loaded: " in damaged.error and "damaged" in damaged.error
        weights.write_bytes(whole)
        assert serving.ask(MODEL, IMAGE, TEXT).status == 200
    finally:
        serving.close()


class Slow:
    """Stands for a model that works until it is let go; counts how many questions it has in hand at a time."""

    def __init__(self):
        self.let_go, self.at_once, self.most, self.ended = threading.Event(), 0, 0, 0
        self.lock = threading.Lock()

    def weights(self):
        return None

    def ask(self, question, images, texts, go_on, **_):
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            while not self.let_go.wait(0.02):
                go_on()
        finally:
            with self.lock:
                self.at_once -= 1
                self.ended += 1
        return {"answers": [{"text": texts[0], "score": 0.5}], "images": [{"codes": []}]}


@pytest.fixture
def slow(runs, bundle_folder):
    serving = serve(runs, bundle_folder, ["rank", "answer"], seconds=0.5)
    serving.slow = Slow()
    serving.asking.models["rank"]._pipeline = serving.slow
    serving.asking.models["answer"]._pipeline = quick = Slow()
    quick.let_go.set()
    yield serving
    serving.slow.let_go.set()
    serving.close()


def until(holds, seconds=5.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    assert holds()


def test_an_answer_that_takes_too_long_is_given_up_and_its_work_ends(slow):
    started = time.monotonic()
    reply = slow.ask(MODEL, IMAGE, TEXT)
    assert reply.status == 504 and "rank gave no answer within 0.5 s" in reply.error
    assert time.monotonic() - started < 3
    model = slow.asking.models["rank"]
    until(lambda: slow.slow.ended == 1 and model.pending == 0)
    slow.slow.let_go.set()
    assert slow.ask(MODEL, IMAGE, TEXT).status == 200


def test_one_question_at_a_time_a_few_wait_and_more_are_turned_away(slow):
    slow.asking.seconds = 30.0
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(slow.ask(MODEL, IMAGE, TEXT))) for _ in range(5)]
    for thread in threads:
        thread.start()
    model = slow.asking.models["rank"]
    until(lambda: model.pending == 5)
    turned_away = slow.ask(MODEL, IMAGE, TEXT)
    assert turned_away.status == 503 and "rank is answering others, and 4 more wait" in turned_away.error
    assert turned_away.headers["retry-after"] == "5"
    assert slow.get("/data/meta.js").status == 200  # The pages do not wait.
    assert slow.ask(("model", "answer"), IMAGE, TEXT).status == 200  # Nor do the other models.
    slow.slow.let_go.set()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 5
    assert slow.slow.most == 1 and slow.slow.ended == 5
    until(lambda: model.pending == 0)


def test_questions_that_waited_too_long_are_never_worked_on(slow):
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(slow.ask(MODEL, IMAGE, TEXT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [504] * 4
    until(lambda: slow.asking.models["rank"].pending == 0)
    assert slow.slow.ended <= 2


def test_a_failure_of_the_server_tells_nothing_of_it(slow, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("at /home/someone/secret")

    monkeypatch.setattr(slow.slow, "ask", fail)
    logged = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *said, **more: logged.append(more))
    reply = slow.ask(MODEL, IMAGE, TEXT)
    assert reply.status == 500 and reply.error == "the server failed at this; its terminal says at what"
    until(lambda: logged)
    assert "at /home/someone/secret" in str(logged[0]["exc_info"])
    until(lambda: slow.asking.models["rank"].pending == 0)


@pytest.mark.parametrize("damage", [{"index": [0, 1]}, {"index": None}, {"index": [10**6] * 4}, {"rows": "2"}, None])
def test_an_image_without_a_code_for_each_patch_is_refused_when_the_explorer_is_opened(bundle_folder, tmp_path, damage):
    folder = shutil.copytree(bundle_folder, tmp_path / "explorer")
    images = Bundle(folder).read("images-0000")
    images = images[:2] if damage is None else [images[0], {**images[1], **damage}, images[2]]
    write_in_files(folder, "images", images, 256)
    told = "ends too early" if damage is None else "image 1: expected a code for each patch of each level"
    with pytest.raises(BundleError, match=rf"images-0000\.js.* {told}"):
        at_hand(str(folder), upload_bytes=1, seconds=1.0)
