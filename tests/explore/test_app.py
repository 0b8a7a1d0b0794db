"""The app: what its tabs answer, what it refuses in one line, and who reaches it."""

import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml

from soho_fast.ask import SohoPipeline
from soho_fast.explore import Bundle
from soho_fast.explore.app_command import main

gr = pytest.importorskip("gradio", reason="the extra `app` is not installed")

from soho_fast.explore import app as apps  # noqa: E402 - which needs gradio
from soho_fast.explore import door  # noqa: E402
from soho_fast.explore.attention import SeeingPipeline  # noqa: E402


def asked_of(app, session=None):
    """The functions of an app by their name, which give the last of what they show."""
    request = gr.Request(session_hash=session)

    def last(fn):
        return lambda *inputs: list(fn(request, *inputs))[-1]

    return {block.api_name: last(block.fn) for block in app.fns.values() if block.api_name}


def tabs_of(app):
    return [block.label for block in app.blocks.values() if isinstance(block, gr.Tab)]


@pytest.fixture(scope="module")
def run(built_run):
    return built_run[0]


@pytest.fixture(scope="module")
def shown(run, tmp_path_factory):
    """What the app shows of the run, and its app."""
    soho = SeeingPipeline.from_pretrained(run)
    explorer, names = apps.explorer_of(str(run), soho.weights())
    data, examples = apps.data_of(str(run), tmp_path_factory.mktemp("examples"))
    about = apps.About("tiny", names, examples, explorer, data)
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


def test_it_says_what_the_model_is_and_what_each_tab_shows(run, shown):
    said = [block.value for block in shown[2].blocks.values() if isinstance(block, gr.Markdown)]
    data = yaml.safe_load((run / "recipe.yaml").read_text())["data"]
    (file,) = {"/".join(Path(each["annotations"]).parts[-2:]) for each in data["sources"]}
    first = f"# tiny\nA SOHO model for pre-training with a dictionary of 8 codes, trained on {file}."
    assert said == [first, *map(apps._SHOWS.get, tabs_of(shown[2]))]


def test_examples_are_found_from_any_folder(run, tmp_path, monkeypatch, capsys):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    started = tmp_path / "project"
    copied = started / "runs/own"
    shutil.copytree(run, copied)
    (started / "data").symlink_to(run.parent / "data")
    text = yaml.safe_dump(recipe | {"output": "runs/own"}).replace(f"{run.parent}/data", "data")
    assert str(run.parent) not in text
    (copied / "recipe.yaml").write_text(text)
    for folder, name in (
        (started, "runs/own"),
        (tmp_path, "project/runs/own"),
        (started / "runs/own", "."),
        ("/", copied),
    ):
        monkeypatch.chdir(folder)
        (into := tmp_path / f"into{len(str(name))}").mkdir()
        assert len(apps.data_of(str(name), into)[1]) > 1, capsys.readouterr().err
        assert os.getcwd() == str(folder)


def test_codes_are_those_of_the_runs_explorer_with_its_words(run, shown):
    _, about, app = shown
    bundle = Bundle(run)
    wall = bundle.read("wall")
    assert about.names == {code: word for code, word in enumerate(wall["word"]) if word}
    images = map(bundle.image, range(bundle.meta["num_shown"]))
    image = next(image for image in images if image["captions"] == list(about.examples[0].texts))
    component, grid, links = asked_of(app)["codes"](about.examples[0].files[0])
    assert grid == {"rows": image["rows"], "columns": image["columns"], "codes": image["index"]}
    labels = [annotation["label"] for annotation in component.value["annotations"]]
    assert labels[0].split()[1] == str(max(set(image["index"]), key=image["index"].count))
    assert {int(label.split()[1]) for label in labels} == set(image["index"])
    found = re.findall(r'href="explorer/\?app#/code/(\d+)" target="_blank">(.*?) (\d+)</a> \((\d+)\)', links)
    numbers = [int(code) for code, *_ in found]
    assert [count for *_, count in found] == [str(image["index"].count(code)) for code in numbers]
    assert [(word, int(code)) for _, word, code, _ in found] == [(wall["word"][n] or "code", n) for n in numbers]
    assert sorted(numbers) == sorted(set(image["index"]))


def test_what_captions_say_of_a_code_is_no_markup(tmp_path):
    index_hw = np.zeros((1, 2), int)
    links = apps.code_links(index_hw, apps.About("tiny", {0: "<b>bold"}, explorer=tmp_path))
    assert "&lt;b&gt;bold 0</a> (2)" in links
    assert "soho explore build" in apps.code_links(index_hw, apps.About("tiny"))


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


def test_unknown_words_are_named(shown):
    file, said = shown[1].examples[0].files[0], "^this model does not know: 'zebra', 'quagga'$"
    ask = asked_of(shown[2])
    for name, inputs in (("rank", (file, "a man\na zebra quagga man")), ("attention", (file, "zebra quagga man", 1))):
        with pytest.warns(UserWarning, match=said):  # Of Gradio, where no page is open.
            ask[name](*inputs)


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
    assert apps.data_of(str(runs / "rank"), tmp_path) == ("", [])
    assert "no more examples: recipe: " in capsys.readouterr().err
    assert apps.explorer_of(str(runs / "rank"), "0" * 64) == (None, {})
    assert apps.explorer_of(str(run), "0" * 64) == (None, {}), "it is of another codebook"


@pytest.mark.parametrize(("arguments", "told"), [(["nowhere/run"], "nowhere/run"), ([], "run")])
def test_a_mistake_is_one_line(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


@pytest.fixture(scope="module")
def address(shown):
    """Where the app is served."""
    app = shown[2]
    yield door.serve(app, explorer=shown[1].explorer)
    app.close(verbose=False)


def answer_of(address, path="", data=None, method=None, **headers):
    """(status, what is answered)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(urllib.parse.urljoin(address, path), data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def upload_of(num_bytes):
    """The body of an upload, and its header."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return body + bytes(num_bytes) + b"\r\n--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}


def test_it_is_reached_at_its_address_alone_and_from_this_machine(shown, address, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    _, _, served, token, _ = address.split("/")
    host, _, port = served.partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5).close()
    assert not shown[2].share and not shown[2].analytics_enabled
    client = Client(address, verbose=False)
    file = shown[1].examples[0].files[0]
    _, grid, _ = client.predict(handle_file(file), api_name="/codes")
    assert grid == asked_of(shown[2])["codes"](file)[1]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(AppError, match=r"image: can't be decoded as an image \(8 bytes\)"):
        client.predict(handle_file(broken), api_name="/codes")
    assert host == "127.0.0.1" and len(token) == 32
    body, kind = upload_of(8)
    assert "<title>Dictionary explorer" in answer_of(address, "explorer/?app")[1]
    assert answer_of(address, "explorer/data/meta.js")[0] == 200
    assert answer_of(address, "explorer/..%2f..%2fpyproject.toml")[0] == answer_of(address, "explorer/no")[0] == 404
    inside = ("info", "startup-events", "queue/join")
    for path in ("/", "/explorer/", "/config", "/docs", *(f"/gradio_api/{name}" for name in inside)):
        assert answer_of(address, path) == (404, '{"detail":"Not Found"}')
    assert answer_of(address, "/gradio_api/upload", body, **kind)[0] == 404


def test_a_chosen_example_is_shown(shown, address):
    names = {number: block.api_name or "" for number, block in shown[2].fns.items()}
    chosen = next(number for number, name in names.items() if name.startswith("load_example"))
    sent = json.dumps({"data": [0], "fn_index": chosen, "session_hash": "example"}).encode()
    code, told = answer_of(address, "gradio_api/run/predict", sent, Content_Type="application/json")
    (url,) = re.findall(r'"url":"(.*?)"', told)
    assert code == 200 and url.startswith(address) and answer_of(url)[0] == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "http://127.0.0.1:8888"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "example.org"}, 400),
        ({"Host": "example.org", "Origin": "http://example.org"}, 400),
    ],
)
def test_another_page_can_change_nothing(address, headers, code):
    own = address[: address.index("/", 7)]
    body, kind = upload_of(8)
    headers = {name: value.replace("{own}", own) for name, value in headers.items()}
    assert answer_of(address, "gradio_api/upload", body, **kind, **headers)[0] == code
    if "Host" in headers:
        assert answer_of(address, **headers)[0] == 400
    join = json.dumps({"data": [], "fn_index": 0, "session_hash": "s"}).encode()
    for path in ("gradio_api/queue/join", "gradio_api/cancel", "gradio_api/reset"):
        answered = answer_of(address, path, join, Content_Type="application/json", **headers)[0]
        assert answered == code or (code == 200 and answered not in (400, 403)), path


def test_bytes_are_bounded(address, monkeypatch):
    body, kind = upload_of(2**20 * (door.MAX_FILE_MB + 2))
    assert answer_of(address, "gradio_api/upload", body, **kind)[0] == 413
    join = b'{"data": ["' + b"a" * (2**20 * door.MAX_CALL_MB) + b'"], "fn_index": 0, "session_hash": "s"}'
    code, told = answer_of(address, "gradio_api/queue/join", join, Content_Type="application/json")
    assert (code, json.loads(told)["detail"]) == (413, f"expected at most {door.MAX_CALL_MB} MB of a request")
    monkeypatch.setattr(door, "MAX_UPLOADS_MB", 1)
    body, kind = upload_of(2**19)
    code, told = answer_of(address, "gradio_api/upload", body, **kind)
    assert (code, json.loads(told)["detail"]) == (413, "expected at most 1 MB of uploads an hour")


def test_a_session_has_so_many_texts_seconds_and_calls(shown, monkeypatch):
    file, own = shown[1].examples[0].files[0], asked_of(shown[2], "own")
    monkeypatch.setattr(door, "MAX_TEXTS", 3)
    own["rank"](file, "a man\na dog")
    with pytest.raises(gr.Error, match="texts: expected at most 3 of a session an hour, got 2 after 2"):
        own["rank"](file, "a man\na dog")
    asked_of(shown[2], "another")["rank"](file, "a man\na dog")
    with pytest.raises(gr.Error, match="texts: expected at most 3 of a session an hour, got 4 at once"):
        asked_of(shown[2], "a further")["rank"](file, "a\rb\u2028c\x0bd")
    monkeypatch.setattr(door, "MAX_SECONDS", 0.0)
    with pytest.raises(gr.Error, match="time: this session has had its 0 seconds"):
        own["codes"](file)
    monkeypatch.undo()
    asked_of(shown[2], "a third")["codes"](file)
    monkeypatch.setattr(door, "MAX_CALLS", 1)
    turns = door.Turns()
    first = turns.take("s", lambda: iter("ab"), 0)
    assert next(first) == "a"
    with pytest.raises(ValueError, match="calls: expected at most 1 at a time"):
        next(turns.take("s", lambda: iter("ab"), 0))
    first.close()
    assert list(turns.take("s", lambda: iter("ab"), 0)) == ["a", "b"]


def test_20_000_lines_do_not_block_others_and_can_be_cancelled(shown, address, monkeypatch):
    from gradio_client import Client, handle_file

    soho, ranked = shown[0], []
    rank = soho.rank
    monkeypatch.setattr(soho, "rank", lambda *asked, **options: ranked.append(asked) or rank(*asked, **options))

    file = handle_file(shown[1].examples[0].files[0])
    long, other = Client(address, verbose=False), Client(address, verbose=False)
    job = long.submit(file, "\n".join(f"a man {number}" for number in range(20_000)), api_name="/rank")
    while not job.outputs():
        assert not job.done(), job.result()
        time.sleep(0.01)
    for name in ("rank", "retrieve", "codes"):
        inputs = {"rank": [file, "a man"], "retrieve": ["a man"], "codes": [file]}[name]
        other.predict(*inputs, api_name=f"/{name}")
    assert not job.done(), "it goes on beside"
    job.cancel()
    in_all, before = 20_000 // 64, 0
    while len(ranked) != before + 1:  # another's alone
        before = len(ranked)
        other.predict(file, "a man", api_name="/rank")
    assert len(ranked) < in_all, "it has ended"


# What a page that is no page of Gradio's could send.
HOSTILE = [
    {"fn_index": 999, "data": []},
    {"fn_index": -1, "data": ["x"]},
    {"fn_index": "{rank}", "data": []},
    {"fn_index": "{rank}", "data": [None]},
    {"fn_index": "{rank}", "data": [None] * 900},
    {"fn_index": "{rank}", "data": ["a", 1]},
    {"fn_index": "{rank}", "data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "a man"]},
    {"fn_index": "{rank}", "data": [{"path": "\0", "meta": {"_type": "gradio.FileData"}}, "a man"]},
    {"fn_index": "{rank}", "data": [{"url": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}, "a"]},
    {"fn_index": "{rank}", "data": [None, {"a": ["b"]}]},
    {"fn_index": "{attention}", "data": [None, "a man", 99]},
    {"fn_index": "{attention}", "data": [None, "a man", {"a": 1}]},
    {"fn_index": "{codes}", "data": [[1, 2, 3]]},
    {"fn_index": "{codes}", "data": [None], "trigger_id": "x" * 1000, "event_data": [1]},
]
# Requests with which Gradio fails: a path, and what is posted there.
FAILING = [
    ("queue/join", b'{"data": [], "fn_index": 1e400, "session_hash": "s"}'),
    ("component_server", b'{"data": 1, "component_id": 99999, "session_hash": "s", "fn_name": "x"}'),
    ("call/v2/rank", b'{"a": 1}'),
    ("call/nothing", b'{"data": []}'),
    ("queue/data?session_hash=nothing", None),
]


def told_by(shown, address, sent):
    """The error that a call is answered with."""
    numbers = {block.api_name: number for number, block in shown[2].fns.items() if block.api_name}
    session, fn = f"s{len(str(sent))}", sent["fn_index"]
    sent = sent | {"session_hash": session, "fn_index": numbers[fn.strip("{}")] if isinstance(fn, str) else fn}
    code, told = answer_of(address, "gradio_api/queue/join", json.dumps(sent).encode(), Content_Type="application/json")
    if code == 200:
        stream = answer_of(address, f"gradio_api/queue/data?session_hash={session}")[1]
        messages = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
        (told,) = [each["output"].get("error") for each in messages if each["msg"] == "process_completed"]
    return told


@pytest.mark.parametrize("sent", HOSTILE, ids=lambda sent: json.dumps(sent)[:60])
def test_a_hostile_call_is_answered_by_an_error_and_leaves_a_line(shown, address, sent, capfd):
    told = told_by(shown, address, sent)
    assert told and "\n" not in told
    lines = "".join(capfd.readouterr()).splitlines()
    assert len(lines) <= 1, lines


def test_a_file_that_nobody_uploaded_is_not_read(shown, address, photo):
    sent = {"fn_index": "{codes}", "data": [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}]}
    assert "it was not uploaded by a user" in (told_by(shown, address, sent) or "")
    assert answer_of(address, f"gradio_api/file={photo}")[0] == 403


@pytest.mark.parametrize(("path", "data"), FAILING)
def test_a_request_that_gradio_fails_with_leaves_a_line(address, path, data, capfd):
    code, told = answer_of(address, f"gradio_api/{path}", data, Content_Type="application/json")
    # Of a stream the first line has gone out before.
    assert (code, list(json.loads(told))) == (500, ["error"]) if data else (code, "error" in told) == (200, True)
    lines = "".join(capfd.readouterr()).splitlines()
    assert len(lines) == 1 and lines[0].startswith("a call failed: ")


def test_ctrl_c_ends_it_and_its_address_is_printed(shown, monkeypatch):
    app, said = apps.model_app(shown[0], shown[1]), []

    def interrupted(line):
        said.append(line)
        raise KeyboardInterrupt

    monkeypatch.setattr(apps, "print_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apps.show(app)
    assert re.fullmatch(r"tiny: http://127.0.0.1:\d+/[\w-]{32}/   \(Ctrl-C ends\)", said[0])
    app.server.thread.join(timeout=30)
    with pytest.raises(urllib.error.URLError, match="refused"):
        answer_of(said[0].split()[1])


def test_a_port_that_is_taken_is_said(shown):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: {port} can't be used"):
            apps.show(apps.model_app(*shown[:2]), port)
