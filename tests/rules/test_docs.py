"""Every command and every snippet of the README and of docs/ runs, in the state that `make demo` leaves.

The state is a folder with the project's own files and, made there by the documented command at a small size, the corpus
`data/soho-mini` and the run `runs/mini`. Commands run as they are written; sizes are put behind them so that they end
within seconds. Blocks of `sh` are for clusters: a shell runs them with programs that only note their arguments, which
the launchers' own parsers and ours then read.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from forked_python import ForkedPython

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of the code blocks of a language, each text once."""
    found: dict[str, str] = {}
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            found.setdefault(text, page.name)
    return [(page, text) for text, page in found.items()]


def commands() -> list[tuple[str, str]]:
    """(page, command), each command once; a backslash continues a line."""
    found: dict[str, str] = {}
    for page, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = " ".join(line.partition(" #")[0].split())
            if command:
                found.setdefault(command, page)
    return [(page, command) for command, page in found.items()]


COMMANDS = commands()
SHOWN = blocks("sh")
SNIPPETS = blocks("python")


def by_page(found: list[tuple[str, str]]) -> list:
    return [pytest.param(page, text, id=f"{page}-{number}") for number, (page, text) in enumerate(found)]


EDGES = "--data.shorter_edge 64 --data.longer_edge 64"
SMALL = f"{EDGES} --max_steps 2"

# What stands behind a command, by what the command holds; the first that fits.
SIZES = [
    ("--help", ""),
    ("pip install", "--dry-run --no-deps --no-build-isolation --quiet"),
    ("soho_r18", ""),
    ("--recipe official", ""),
    ("--recipe paper", ""),
    ("--recipe vqa", ""),
    ("--recipe mini_vqa", f"{SMALL} --data.min_answer_count 2"),
    ("--recipe mini_retrieval", SMALL),
    ("--recipe own_vqa", SMALL),
    ("own_reader:read", f"{SMALL} --batch.global_batch_size 4"),
    ("--recipe own", SMALL),
    ("--output runs/own_timm", SMALL),
    ("--output runs/own_tower", SMALL),
    ("--output runs/own_net", SMALL),
    ("own_loss:FocalLoss", f"{SMALL} --model.bag_of_words_epochs 0"),
    ("--optim.rule", SMALL),
    ("own_task:OwnTask", f"{SMALL} --data.min_answer_count 2"),
    ("runs/own_task --split", ""),
    ("own_callback:Usage", SMALL),
    ("own_quantiser:OwnQuantiser", SMALL),
    ("explore build runs/own_quantiser", ""),
    ("ask rank runs/own_quantiser", ""),
    ("benchmarks.studies table7", "--list"),
    ("benchmarks.studies demo", ""),
    ("tokenizer my_images", "--overwrite"),
    ("soho start", f"{SMALL} --output runs/started"),
    ("soho check", ""),
    ("--data.scoring both", ""),
    ("evaluate --run", ""),
    ("ask ", ""),
    ("soho suite", "--workers 0"),
    ("soho export", ""),
    ("exported/run.py", ""),
    ("examples/explore_vector_quantize_pytorch.py", "--steps 10"),
    ("soho app", ""),
    ("explore ", ""),
    ("examples/ranked_captions.py", "--candidates 6 --columns 2"),
    ("benchmarks.inference", "--small --batches 1 --rounds 1 --only 'SOHO eager, float32'"),
    ("pytest tests/", "--collect-only"),
    ("fuzz_lookup.py", "--rows 300"),
    ("build/", ""),
    (
        "dictionary_life",
        "--smallest-edge 1 --images 2 --views 1 --shorter-edge 64 --longer-edge 64 --codes 16 --channels 8 --tokens 2 "
        "--still 2 --moving 2",
    ),
    ("benchmarks.k_means", "--rows 300 --clusters 4 --channels 32"),
    ("profile_step", "--steps 1 --images 4 --data.shorter_edge 64 --data.longer_edge 64"),
]

# What a command says, where it is not to end well: it needs data that this machine does not have.
REFUSED = {
    "soho_r18": "there is no such file or folder",
    "--recipe official --data_roots": "data_roots.coco: /data/coco",
    "--recipe paper": "data_roots.coco: /data/coco",
    "--recipe vqa": "data_roots.vqa: /data/vqa",
}

# What the others say, by what the command holds.
SAYS = {
    "--help": "--optim.lr",
    "--recipe mini_vqa": "vqa score",
    "--recipe mini_retrieval": "text to image R@10",
    "--recipe own_vqa": "vqa score",
    "tokenizer my_images": "1.00 pieces a word",
    "soho check": "ready; next: soho train --recipe own --data_roots.images my_images",
    "evaluate --run runs/own_vqa": "in runs/own_vqa/evaluation/val-best/",
    "evaluate --run runs/mini_vqa": "in runs/mini_vqa/evaluation/test-best/",
    "--data.scoring both": "two stages",
    "ask rank": "  two cats",
    "ask label": "photos/5.jpg: ",
    "ask retrieve": " %  photos/0.jpg",
    "soho suite": "winoground: 1 examples",
    "soho export": "exported: SHA256SUMS, about.json, encode.pt2",
    "exported/run.py": " %  two cats",
    "ask many": "results.jsonl: 5 lines",
    "explore build runs/mini": "open runs/mini/explorer/index.html",
    "explore figure": "the codes as a figure: ",
    "examples/explore_vector_quantize_pytorch.py": "vq_explorer/index.html",
    "benchmarks.inference": "wrote inference.json",
    "pytest tests/": " tests collected",
    "fuzz_lookup.py": "300 rows in 1 problems, 0 different",
    "build/example/kmeans": "of the true centres",
    "dictionary_life": "{dictionary_init: data, code_reset_threshold: 0.02}",
    "benchmarks.studies demo --report": "24 of 24 rows are there",
    "benchmarks.studies": " runs are left",
    "own_loss:FocalLoss": " focal ",
    "own_reader:read": "own: 5 images, 5 captions",
    "own_callback:Usage": "2 steps in",
    "own_task:OwnTask": "vqa score",
    "runs/own_task --split": "agreed by all",
    "own_quantiser:OwnQuantiser": "ITM, balanced pairs",
    "explore build runs/own_quantiser": "open runs/own_quantiser/explorer/index.html",
    "profile_step": "the backbone ran on 4 images",
    "--recipe own": "ITM, balanced pairs",
}


def environment() -> dict[str, str]:
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")  # of a process group that an earlier test left
    return {name: value for name, value in os.environ.items() if name not in launched} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(command, folder): as a shell would; one that begins with `python` in a process that is forked."""
    forked = ForkedPython(
        environment(), "torchvision", "transformers.models.bert.modeling_bert", "matplotlib.pyplot",
        "torch.utils.tensorboard",
    )  # fmt: skip

    def run(command: str, folder: Path) -> subprocess.CompletedProcess:
        if not command.startswith("python ") or set("|&;<>$*") & set(command):
            return subprocess.run(
                command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
        said = tmp_path_factory.mktemp("said")
        status = forked.run(shlex.split(command)[1:], folder, environment(), said / "stdout", said / "stderr")
        return subprocess.CompletedProcess(
            command, status, (said / "stdout").read_text(), (said / "stderr").read_text()
        )

    yield run
    forked.close()


def serves(command: str, folder: Path) -> None:
    """The command prints an address at which the app is and a program's question is answered, and ends with Ctrl-C."""
    with subprocess.Popen(
        f"exec {command}",
        shell=True,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            said = ""
            while (found := re.search(r"http://[\d.]+:\d+/\S+", said)) is None:
                line = server.stdout.readline()
                assert line, f"it ended: {said}"
                said += line
            with urllib.request.urlopen(found[0], timeout=30) as page:
                assert b": pre-training" in page.read()
            (asking,) = (text for _, text in SHOWN if "gradio_client" in text)
            asking = asking.replace("http://127.0.0.1:7860/TOKEN", found[0])
            done = subprocess.run(
                asking, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False
            )
            assert re.search(r"'codes': \[\d+, ", done.stdout), done.stdout + done.stderr
            server.send_signal(signal.SIGINT)
            assert server.wait(30) in (0, 130)
        finally:
            server.kill()


@pytest.fixture(scope="module")
def state(tmp_path_factory, run):
    """A folder as `make demo` leaves it, small, with a picture to ask about."""
    from tiny_corpus import draw, write_images
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("state")
    for path in ROOT.iterdir():  # Without what users have made there by these very commands.
        if path.name not in ("runs", "data", "build", ".git", ".venv", "my_images", "photo.jpg"):
            (folder / path.name).symlink_to(path)
    done = run("python -m soho_fast.common.console corpus --num-train 40 --num-heldout 12 --quiet", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(f"deepspeed soho_fast/train.py {SMALL}", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("metrics.json", "log.jsonl", "model/model.safetensors"):
        assert (folder / "runs/mini" / name).stat().st_size > 0
    assert "ITM, balanced pairs" in done.stdout
    done = run("python -m soho_fast.common.console explore build runs/mini", folder)
    assert done.returncode == 0 and (folder / "runs/mini/explorer/index.html").is_file(), done.stdout + done.stderr
    draw(folder / "photo.jpg")
    write_images(folder / "my_images")
    asked = [
        json.dumps({"image": str(path.relative_to(folder / "my_images")), "texts": ["a red car", "a dog"]})
        for path in sorted((folder / "my_images").rglob("*.png"))
    ]
    files = sorted(path.relative_to(folder / "my_images") for path in (folder / "my_images").rglob("*.png"))
    rows = [f"{file},{('a red car', 'a dog')[number % 2]}\n" for number, file in enumerate(files)]
    (folder / "my_images/own.csv").write_text("".join(rows))
    (folder / "my_images/questions.jsonl").write_text("\n".join(asked))
    for number in range(6):
        draw(folder / f"photos/{number}.jpg")
    pair = {"image_0": "0", "image_1": "1", "caption_0": "a dog and a cat", "caption_1": "a cat and a dog"}
    for number in range(2):
        draw(folder / f"my_suite/images/{number}.png")
    (folder / "my_suite/examples.jsonl").write_text(json.dumps(pair))
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder / "dinov2-small")
    for name, snippet in own_parts().items():
        (folder / name).write_text(snippet)
    return folder


def own_parts() -> dict[str, str]:
    """The files that a snippet begins with the name of, which commands then read: parts of a user's own."""
    named = [(re.match(r"# (own_\w+\.py)\n", snippet), snippet) for _, snippet in SNIPPETS]
    return {found[1]: snippet for found, snippet in named if found}


def test_the_pages_have_commands_and_snippets():
    assert len(COMMANDS) >= 12 and len(SNIPPETS) >= 3
    assert [command for _, command in COMMANDS[:3]] == ["pip install -e .", "make demo", "make test"]


@pytest.mark.parametrize(("page", "snippet"), by_page(SNIPPETS))
def test_snippet(page, snippet, state, run, tmp_path):
    if "onnx" in snippet:
        pytest.importorskip("onnxscript")
    (tmp_path / "snippet.py").write_text(snippet)
    done = run(f"python {tmp_path / 'snippet.py'}", state)
    assert done.returncode == 0, done.stderr
    for line, comment in re.findall(r"^ *print\((\w+)\)  # (.*)$", snippet, flags=re.MULTILINE):
        assert comment in done.stdout, line


def test_parts_of_a_users_own_are_short():
    parts = own_parts()
    assert parts and not [name for name, text in parts.items() if len(text.splitlines()) > 45]


def test_every_op_has_its_place():
    from soho_fast import ops

    page = (ROOT / "docs/ops.md").read_text()
    assert not [name for name in ops.__all__ if not re.search(rf"\b{name}\b", page)]


@pytest.mark.parametrize(("page", "command"), by_page(COMMANDS))
def test_command(page, command, state, run):
    if command.startswith("make "):
        # Running make inside make's own test would never end; what it would run is the other commands here.
        done = run(f"{command} --dry-run", state)
        assert done.returncode == 0, done.stderr
        runs = {"make demo": "soho train", "make test": "pytest tests"}
        assert runs.get(command, "") in done.stdout
        return
    if command == "soho train":
        return  # It made the state, by the launcher.
    behind = next((size for part, size in SIZES if part in command), None)
    assert behind is not None, f"{page} has a command that no test runs: {command}"
    if command.startswith(("soho app", "soho start")):
        pytest.importorskip("gradio", reason="the extra `app` is not installed")
        if "start" in command:
            command = command.replace("my_images", "started")
            shutil.copytree(state / "my_images", state / "started", ignore=shutil.ignore_patterns("tokenizer"))
        command = command.replace("soho ", "python -m soho_fast.common.console ", 1)
        serves(f"{command} {behind}", state)
        return
    if re.search("runs/own|soho check", command) and not (state / "runs/own").exists():
        # Commands go on from what others make; one may be tried alone.
        if not (state / "my_images/tokenizer").exists():
            test_command(page, "soho tokenizer my_images/images.jsonl my_images/tokenizer", state, run)
        test_command(page, "soho train --recipe own --data_roots.images my_images", state, run)
    # The command `soho` is there where the package is installed.
    command = re.sub("^soho ", "python -m soho_fast.common.console ", command)
    # `state` has tried the launcher, which takes ten seconds longer to start.
    done = run(f"{command} {behind}".replace("deepspeed soho_fast", "python soho_fast"), state)
    refused = next((words for part, words in REFUSED.items() if part in command), None)
    if refused is not None:
        assert done.returncode != 0 and "error: " in done.stderr and refused in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    said = next((words for part, words in SAYS.items() if part in command), "")
    assert said in done.stdout, done.stdout


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, text in SHOWN if "gradio_client" not in text])
def test_commands_of_clusters_are_read_by_the_launchers_and_by_us(page, text, tmp_path):
    from deepspeed.launcher.runner import parse_args as of_deepspeed
    from torch.distributed.run import parse_args as of_torchrun

    from soho_fast.tasks.recipe import load_recipe

    noting = 'printf "%s\\0" "${0##*/}" "$@" >> "$NOTED"; echo >> "$NOTED"'
    hosts = '[ "$*" = "show hostnames node[1-4]" ] && printf "node%s\\n" 1 2 3 4'
    for name, does in {"deepspeed": noting, "torchrun": noting, "srun": 'exec "$@"', "scontrol": hosts}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": "4", "NODE": "0", "NOTED": str(tmp_path / "noted")}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail"],
        input=text,
        env=slurm | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    for line in (tmp_path / "noted").read_text().splitlines():
        program, *given = line.rstrip("\0").split("\0")
        parsed = of_deepspeed(given) if program == "deepspeed" else of_torchrun(given)
        script = parsed.user_script if program == "deepspeed" else parsed.training_script
        ours = parsed.user_args if program == "deepspeed" else parsed.training_script_args
        assert script == "soho_fast/train.py" and (ROOT / script).is_file()
        assert load_recipe(ours).name == ("paper" if "paper" in ours else "mini")


def test_the_hostfile_is_one(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    (hosts,) = (text for page, text in blocks("text") if page == "cluster.md")
    (tmp_path / "hosts").write_text(hosts)
    assert fetch_hostfile(str(tmp_path / "hosts")) == {"node1": 8, "node2": 8}


def test_no_size_and_no_saying_is_left_of_a_command_that_has_gone():
    parts = [*dict(SIZES), *REFUSED, *SAYS]
    assert not [part for part in parts if not any(part in command for _, command in COMMANDS)]


def test_every_block_says_what_it_is():
    """Else no test would run it: `text` is what something prints, or a file."""
    known = {"bash", "sh", "python", "json", "yaml", "text"}
    fences = {page.name: re.findall(r"^ *```(.*)", page.read_text(), flags=re.MULTILINE)[::2] for page in PAGES}
    assert not [(page, language) for page, found in fences.items() for language in found if language not in known]
    programs = re.compile(r"^(srun|torchrun|deepspeed|soho|python|make|pip|curl) ", flags=re.MULTILINE)
    assert not [(page, text) for page, text in blocks("text") if programs.search(text)]


def test_every_link_leads_somewhere():
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http://", "https://")) and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing, missing


def _speeds(results: str, case: str) -> str:
    """The least and the most that the fastest baseline takes in the cases of a name, as the page of results has it."""
    rows = re.findall(rf"^\| {case} \| [^|]* \|(.*)", results, flags=re.MULTILINE)
    fastest = [min(re.findall(r"([\d.]+)x", row), key=float) for row in rows]
    return f"{min(fastest, key=float)}x to {max(fastest, key=float)}x"


def test_the_readme_is_short_and_its_figures_are_of_their_sources():
    readme, results = PAGES[0].read_text(), (ROOT / "docs/results.md").read_text()
    assert len(readme.splitlines()) <= 100
    speeds = re.findall(r"^\| .* \| ([\d.]+x to [\d.]+x) ", readme, flags=re.MULTILINE)
    assert speeds == [_speeds(results, case) for case in (r"\d+x\d+x\d+ float32", "real [^|]+", r"\d+x\d+x\d+x\d+")]
    files = re.findall(r"`([a-z_/]+\.py)`", readme)
    assert len(files) == 10
    for name in files:
        assert any((ROOT / "soho_fast" / folder / name).is_file() for folder in ("", "model")), name


def test_the_settings_that_may_change_are_those_that_are_not_compared():
    from soho_fast.engine.changes import NOT_COMPARED as OF_EVERY_TASK
    from soho_fast.tasks.identity import NOT_COMPARED

    text = " ".join((ROOT / "docs/training.md").read_text().split())
    told = re.search(r"These settings do not affect the trained weights [^:]*: (.*?)\.(?= )", text)[1]
    named = re.findall(r"`([a-z_.]+)`", told)
    patterns = [
        *OF_EVERY_TASK,
        *(name for name, why in NOT_COMPARED.items() if why.startswith("how much is evaluated")),
    ]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern.removesuffix(".*")) for name in named), f"{pattern} is not named"
    for name in named:
        assert any(fnmatchcase(name, pattern.removesuffix(".*")) for pattern in patterns), f"{name} is compared"
