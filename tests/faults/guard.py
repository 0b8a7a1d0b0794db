"""A user's own code that changes between two starts, on one of two ranks, or before its model is read; and strangers
who call `soho app`.

Held: changed code is refused by one line that names it, and with the code of before a run ends as undisturbed; the app
answers each call by an error or as it should, prints no stack trace, and is there afterwards.
"""

import json
import os
import random
import re
import signal
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import runs
from tiny_runs import Bench, Case, LostError, digest, kill_at, run, same, start

# What each part is named by, and its code, in which a factor can be in three places.
_HEAD = """from planted_beside.inner import INNER

OWN = 1.0


def factor():
    import planted_beside.late

    return OWN * INNER * planted_beside.late.LATE


"""
_PARTS = {
    "loss": (
        ("--model.losses", '{"own": {"path": "planted_own:Part"}}'),
        "from torch import nn\n\n\nclass Part(nn.Module):\n    def forward(self, outputs, batch):\n"
        "        return factor() * outputs.mlm_logits.float().square().mean()\n",
    ),
    "rule": (
        ("--optim.rule", "planted_own:Part"),
        "import torch\n\n\nclass Part(torch.optim.SGD):\n    def step(self, closure=None):\n"
        "        for group in self.param_groups:\n            group['lr'] *= factor()\n        return super().step()\n",
    ),
    "dictionary": (
        ("--model.config.dictionary", "planted_own:Part"),
        "from soho_fast.model.visual_dictionary import VisualDictionary\n\n\nclass Part(VisualDictionary):\n"
        "    def forward(self, feat_BLC, *rest, **more):\n"
        "        return super().forward(feat_BLC * factor(), *rest, **more)\n",
    ),
    "tracker": (
        ("--log.trackers", "[planted_own:Part]"),
        "class Part:\n    def init(self, dir):\n        self.factor = factor()\n"
        "    def log(self, values, step):\n        pass\n    def finish(self):\n        pass\n",
    ),
}  # fmt: skip
_PLACES = {"planted_own.py": "OWN", "planted_beside/inner.py": "INNER", "planted_beside/late.py": "LATE"}
_READERS = ("rank", "explore", "train")


def code(bench: Bench) -> list[Case]:
    """A factor changes in each part of a user's own: in its file or in one beside it, perhaps imported late."""
    every = [
        (f"{part}, {place}, {way}", partial(way_of, bench, part, place))
        for part in _PARTS
        for place in _PLACES
        for way, way_of in (("resumed", _resumed), ("on one rank", _on_one_rank))
    ]
    return every + [
        (f"dictionary, {place}, {reader}", partial(_read, bench, place, reader))
        for place in _PLACES
        for reader in _READERS
    ]


def _written(folder: Path, part: str) -> Path:
    """A folder with the code of a part, which is the current one of what is started by `_before`."""
    (folder / "planted_beside").mkdir(parents=True)
    (folder / "planted_own.py").write_text(_HEAD + _PARTS[part][1])
    for place, name in list(_PLACES.items())[1:]:
        (folder / place).write_text(f"{name} = 1.0\n")
    return folder


def _change(folder: Path, place: str, before: str = "1.0", now: str = "1.001") -> None:
    text = (folder / place).read_text()
    assert text.count(f" = {before}\n") == 1
    (folder / place).write_text(text.replace(f" = {before}\n", f" = {now}\n"))


def _name(place: str) -> str:
    return place.removesuffix(".py").replace("/", ".")


def _undisturbed(bench: Bench, part: str) -> Path:
    def make(new: Path) -> None:
        own = _written(new.with_name("own"), part)
        arguments = bench.command("pretraining", new, *_PARTS[part][0])
        run(arguments, before=partial(os.chdir, own)).expect(0, where="undisturbed")

    return bench.once(f"own-{part}", make)


def _refused(done: runs.Finished, place: str, where: str) -> None:
    """One line that names the module."""
    if f"code.{_name(place)}" not in done.expect(2, where=where).errors[0]:
        raise LostError(f"{where}: said: {done.errors[0][:300]}")


def _resumed(bench: Bench, part: str, place: str, folder: Path, draw: random.Random) -> None:
    expected, own, output = _undisturbed(bench, part), _written(folder / "code", part), folder / "run"
    arguments = bench.command("pretraining", output, *_PARTS[part][0])
    at = draw.randrange(len(bench.events["pretraining"]) // 2, len(bench.events["pretraining"]))
    killing = kill_at(output, at)
    run(arguments, before=lambda: (os.chdir(own), killing()))
    _change(own, place)
    _refused(run(arguments, before=partial(os.chdir, own)), place, "resumed with other code")
    _change(own, place, "1.001", "1.0")
    run(arguments, before=partial(os.chdir, own)).expect(0, where="resumed with the code of before")
    same(digest(expected), digest(output))


def _on_one_rank(bench: Bench, part: str, place: str, folder: Path, draw: random.Random) -> None:
    owns = [_written(folder / f"code-{rank}", part) for rank in range(2)]
    _change(owns[draw.randrange(2)], place)
    both = runs.start_two(bench, folder / "run", *_PARTS[part][0], befores=[partial(os.chdir, own) for own in owns])
    lines = [line for each in runs.end_all(both) for line in each.expect(2, where="one of two").errors]
    if not all(f"code.{_name(place)}" in line and "rank" in line for line in lines):
        raise LostError(f"said: {' | '.join(lines)[:300]}")


def _read(bench: Bench, place: str, reader: str, folder: Path, draw: random.Random) -> None:
    """What reads a model refuses other code, or says so where it is told to take it; training from one says so."""
    flags, own = _PARTS["dictionary"][0], _written(folder / "code", "dictionary")
    source = str(bench.copy(_undisturbed(bench, "dictionary").name, folder / "source"))
    _change(own, place)
    command = {
        "rank": ["ask", "rank", source, str(bench.picture), "a dog", "--import", "planted_own"],
        "explore": ["explore", "build", source, "--trust-file", "--into", str(folder / "bundle")],
        "train": bench.command("pretraining", folder / "run", *flags, "--model.pretrained", f"{source}/model"),
    }[reader]
    if reader != "train":
        _refused(run(command, before=partial(os.chdir, own)), place, reader)
        command.append("--accept-changes")
    done = run(command, before=partial(os.chdir, own)).expect(0, where=f"{reader}, accepted")
    if f"code.{_name(place)} " not in done.text:
        raise LostError(f"{reader}: nothing was said of the change: {done.text[-300:]}")


_ADDRESS = re.compile(r"http://\S+/")
_CALLS = 150
_PATHS = (
    "", "config", "info", "gradio_api/info", "gradio_api/queue/join", "gradio_api/queue/data?session_hash=s",
    "gradio_api/run/predict", "gradio_api/call/rank", "gradio_api/call/v2/codes", "gradio_api/upload",
    "gradio_api/reset", "gradio_api/cancel", "gradio_api/file=/etc/passwd", "gradio_api/file=../../etc/passwd",
    "gradio_api/heartbeat/s",
    "gradio_api/component_server", "gradio_api/upload_progress?upload_id=s", "gradio_api/stream/s/0/0/playlist.m3u8",
    "explorer/", "explorer/..%2f..%2fetc/passwd", "login", "logout", "static/../../etc/passwd", "theme.css", "%00",
)  # fmt: skip
_VALUES = (
    None, True, -1, 0, 1, 10**30, 1e308, "", "a dog", "\0", "x" * 10**5, "\n" * 10**5, [], [None] * 99, {}, {"a": 1},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"url": "http://127.0.0.1:1/", "path": "a.png"},
    {"path": "/dev/zero", "meta": {"_type": "gradio.FileData"}}, [[[1]]], "{uploaded}",
)  # fmt: skip
_STRANGERS = (
    {"Origin": "http://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "example.org"},
)  # fmt: skip


def app(bench: Bench) -> list[Case]:
    """Calls of the app: by its own page, by other pages, by who does not have its address; of every kind of content."""
    return [(f"{_CALLS} calls, {number}", partial(_called, bench)) for number in range(1000)]


def _called(bench: Bench, folder: Path, draw: random.Random) -> int:
    command = start(["app", str(bench.folder / draw.choice(("pretraining", "vqa")))])
    deadline = time.monotonic() + 120
    while not (found := _ADDRESS.search(command.output.read_text())) and not command.poll():
        if time.monotonic() > deadline:
            raise LostError("no address was printed")
        time.sleep(0.05)
    if found is None:
        command.wait().expect(130, where="the app")
        raise LostError("no address was printed")
    try:
        for _ in range(_CALLS):
            _call(found[0], draw)
        if _answer(found[0])[0] != 200:
            raise LostError("the app does not answer any more")
    finally:
        command.send(signal.SIGINT)
        done = command.wait(30)
    done.expect(130, where="the app")
    said = [line for line in done.text.splitlines() if "a call failed: " not in line]
    if len(said) > 40:
        raise LostError(f"{len(said)} lines of hostile calls: {said[-1][:200]}")
    return _CALLS


def _call(address: str, draw: random.Random) -> None:
    path, who = draw.choice(_PATHS), draw.choice(("own", "own", "own", "stranger", "guess"))
    method = draw.choice(("GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"))
    named = dict(draw.choice(_STRANGERS)) if who == "stranger" else {}
    data = None
    if method != "GET" and method != "HEAD":
        sent = {
            "data": draw.choice(([draw.choice(_VALUES) for _ in range(draw.randrange(5))], draw.choice(_VALUES))),
            "fn_index": draw.choice((*range(-1, 12), None, "0", 1e9)),
            "session_hash": draw.choice(("s", "t", None, 3)),
            **draw.choice(({}, {}, {"event_id": "s"}, {"event_data": draw.choice(_VALUES), "trigger_id": 1})),
        }
        data = draw.choice((json.dumps(sent).encode(), json.dumps(sent).encode(), draw.randbytes(99), b""))
        named["Content-Type"] = draw.choice(("application/json", "multipart/form-data; boundary=x", "text/plain", ""))
    if who == "guess":
        address = re.sub(r"/[^/]{8,}/$", draw.choice(("/", "/explorer/", "/" + "a" * 32 + "/")), address)
    code, text = _answer(address + path, data, method, named)
    what = f"{method} {path}, {data!r:.150}, {named}: {code}"
    if "Traceback" in text or "root:" in text:
        raise LostError(f"{what}: {text[:200]}")
    if who == "guess" and code not in (404, 405):
        raise LostError(f"{what}, without the address")
    if who == "stranger" and code not in (400, 403) and (method not in ("GET", "HEAD") or "Host" in named):
        raise LostError(f"{what}, of another page")


def _answer(url: str, data: bytes | None = None, method: str = "GET", named: dict | None = None) -> tuple[int, str]:
    """Its code, and the beginning of its text: some are streams."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named or {}, method=method), timeout=10) as got:
            return got.status, got.read1(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except TimeoutError:  # a stream without anything to say
        return 200, ""
