"""The app: what its tabs answer, what it refuses in one line, and who reaches it."""

import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from soho_fast.ask import SohoPipeline
from soho_fast.explore import Bundle
from soho_fast.explore.app_command import main

gr = pytest.importorskip("gradio", reason="the extra `app` is not installed")

from soho_fast.explore import app as apps  # noqa: E402 - which needs gradio
from soho_fast.explore.attention import SeeingPipeline  # noqa: E402


def asked_of(app):
    """The functions of an app by their name."""
    return {block.api_name: block.fn for block in app.fns.values() if block.api_name}


def tabs_of(app):
    return [block.label for block in app.blocks.values() if isinstance(block, gr.Tab)]


@pytest.fixture(scope="module")
def run(built_run):
    return built_run[0]


@pytest.fixture(scope="module")
def shown(run, tmp_path_factory):
    """What the app shows of the run, and its app."""
    soho = SeeingPipeline.from_pretrained(run)
    about = apps.About(
        "tiny", apps.names_of(str(run), soho.weights()), apps.examples_of(str(run), tmp_path_factory.mktemp("examples"))
    )
    return soho, about, apps.model_app(soho, about)


def test_examples_are_the_runs_held_out_images_and_their_captions(run, shown):
    _, about, app = shown
    bundle = Bundle(run)
    images = map(bundle.image, range(bundle.meta["num_shown"]))
    held_out = [image for image in images if bundle.meta["sources"][image["source"]]["name"].endswith("held out")]
    assert len(about.examples) == len(held_out) > 1
    captions = {tuple(image["captions"]) for image in held_out}
    assert {example.texts for example in about.examples} == captions
    assert all(Path(file).is_file() for example in about.examples for file in example.files)
    assert tabs_of(app) == ["rank", "retrieve", "codes", "attention"]
    assert len([block for block in app.blocks.values() if isinstance(block, gr.Dataset)]) == 4


def test_codes_are_those_of_the_runs_explorer_with_its_words(run, shown):
    _, about, app = shown
    bundle = Bundle(run)
    wall = bundle.read("wall")
    assert about.names == {code: word for code, word in enumerate(wall["word"]) if word}
    images = map(bundle.image, range(bundle.meta["num_shown"]))
    image = next(image for image in images if image["captions"] == list(about.examples[0].texts))
    component, grid = asked_of(app)["codes"](about.examples[0].files[0])
    assert grid == {"rows": image["rows"], "columns": image["columns"], "codes": image["index"]}
    labels = [annotation["label"] for annotation in component.value["annotations"]]
    assert labels[0].split()[0] == str(max(set(image["index"]), key=image["index"].count))
    assert {int(label.split()[0]) for label in labels} == set(image["index"])


def test_a_text_is_ranked_and_retrieves_as_the_pipeline_says(run, shown):
    _, about, app = shown
    plain, file = SohoPipeline.from_pretrained(run), about.examples[0].files[0]
    texts = [about.examples[0].texts[0], about.examples[1].texts[0]]
    expected = {row["text"]: row["score"] for row in plain.rank(file, texts)}
    assert asked_of(app)["rank"](file, "\n\n".join(texts)) == pytest.approx(expected, abs=1e-5)
    found = asked_of(app)["retrieve"](texts[0])
    scores = {each.files[0]: plain.rank(each.files[0], texts[:1])[0]["score"] for each in about.examples}
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:12]
    assert [scores[file] for file, _ in found] == pytest.approx([scores[file] for file in best], abs=1e-5)
    assert found[0][1] == f"{100 * scores[best[0]]:.1f} %"


def test_attention_is_an_image_a_token_brightest_where_it_is_most(shown):
    soho, about, app = shown
    file = about.examples[0].files[0]
    found = asked_of(app)["attention"](file, "a red man", 1)
    pixels, visual, _ = soho.see(file)
    tokens, (share_DShw,) = soho.attention("a red man", [visual])
    assert [token for _, token in found] == tokens
    image, share_hw = found[1][0].astype(float), share_DShw[0, 1]
    most = np.unravel_index(share_hw.argmax(), share_hw.shape)
    edge = soho.model.config.token_stride
    patch = tuple(slice(edge * place, edge * place + edge) for place in most)
    assert np.abs(image[patch] - pixels[patch]).max() <= 1, "it is as it was"
    assert image.sum() < pixels.sum()


def test_what_cannot_be_used_is_one_line(shown, tmp_path):
    _, about, app = shown
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    whole, ask = about.examples[0].files[0], asked_of(app)
    for name, inputs, told in (
        ("rank", (str(broken), "a man"), "image: can't be decoded as an image (8 bytes): it is no JPEG"),
        ("codes", (str(broken),), "image: can't be decoded as an image (8 bytes)"),
        ("attention", (None, "a man", 1), "image: expected one; upload a file, or choose an example"),
        ("rank", (whole, " \n"), "texts: expected a list of at least one text, got []"),
        ("retrieve", ("",), "text: expected words, got ''"),
        ("attention", (whole, "man " * 600, 1), "text: expected at most 512 tokens, got 602"),
    ):
        with pytest.raises(gr.Error) as error:
            ask[name](*inputs)
        assert error.value.message.startswith(told) and "\n" not in error.value.message
        assert str(tmp_path) not in error.value.message


@pytest.mark.parametrize(
    ("name", "tabs"),
    [
        ("answer", ["answer", "codes", "attention"]),
        ("compare", ["compare", "codes", "attention"]),
        ("entails", ["entails", "codes", "attention"]),
        ("retrieval", ["rank", "attention"]),
    ],
)
def test_tabs_are_those_that_the_model_can_answer(runs, photo, name, tabs):
    soho = SeeingPipeline.from_pretrained(runs / name)
    app = apps.model_app(soho, apps.About(name))
    assert tabs_of(app) == tabs
    files = [str(photo)] * (2 if name == "compare" else 1)
    scores = asked_of(app)[soho.action](*files, "a red man")
    expected = getattr(soho, soho.action)(*files, ["a red man"] if soho.action == "rank" else "a red man")
    assert list(scores.values()) == [row["score"] for row in expected]
    assert len(asked_of(app)["attention"](*files, "a red man", 2)) == 4 * len(files), "[CLS] and three words"


def test_a_run_without_its_data_or_explorer_has_no_examples_and_no_names(run, runs, tmp_path, capsys):
    assert apps.examples_of(str(runs / "rank"), tmp_path) == []
    assert "no more examples: recipe: " in capsys.readouterr().err
    assert apps.names_of(str(runs / "rank"), "0" * 64) == {}
    assert apps.names_of(str(run), "0" * 64) == {}, "its names are of another codebook"


@pytest.mark.parametrize(("arguments", "told"), [(["nowhere/run"], "nowhere/run"), ([], "run")])
def test_a_mistake_is_one_line(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


@pytest.fixture
def address(shown, monkeypatch, capsys):
    """Where the app is served."""
    app = shown[2]
    monkeypatch.setattr(app, "block_thread", lambda: None)
    apps.show(app)
    said = capsys.readouterr().out
    assert said.startswith("tiny: http://127.0.0.1:") and said.endswith("/   (Ctrl-C ends)\n")
    yield said.split()[1]
    app.close()


def test_it_is_reached_at_this_machines_own_address_alone(shown, address, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()
    assert not shown[2].share and not shown[2].analytics_enabled
    client = Client(address, verbose=False)
    file = shown[1].examples[0].files[0]
    _, grid = client.predict(handle_file(file), api_name="/codes")
    assert grid == asked_of(shown[2])["codes"](file)[1]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(AppError, match=r"image: can't be decoded as an image \(8 bytes\)"):
        client.predict(handle_file(broken), api_name="/codes")
    request = urllib.request.Request(address, headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=30)
    large = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    large += bytes(2**20 * apps.MAX_FILE_MB + 1) + b"\r\n--x--\r\n"
    request = urllib.request.Request(f"{address}gradio_api/upload", large)
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == 413


def test_a_port_that_is_taken_is_said(shown):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: {port} can't be used"):
            apps.show(shown[2], port)
