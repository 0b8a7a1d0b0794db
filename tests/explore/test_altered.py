"""An explorer is what was built: each altered file of it is named, by `build`, `figure` and in Python."""

import json
import os
import shutil

import pytest
from explore_made import MadeSource, codebook, seen_images

from soho_fast.common.versions import write_run_of
from soho_fast.explore import Bundle
from soho_fast.explore.__main__ import main
from soho_fast.explore.assemble import assemble
from soho_fast.explore.bundle import BundleError

NUM_CODES = 70  # two files of codes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source = MadeSource(seen_images(5, NUM_CODES), codebook(NUM_CODES))
    return assemble(source, tmp_path_factory.mktemp("built") / "explorer", say=lambda line: None)


@pytest.fixture
def explorer(built, tmp_path):
    return shutil.copytree(built, tmp_path / "run" / "explorer")


def another(content: bytes) -> bytes:
    """As long, and as well-formed where it is text: another digit or letter in the middle."""
    places = [place for place, byte in enumerate(content) if 48 <= byte < 57 or 97 <= byte < 122]
    place = places[len(places) // 2]
    return content[:place] + bytes([content[place] + 1]) + content[place + 1 :]


DAMAGES = {"another value": another, "cut short": lambda content: content[:-2], "empty": lambda content: b""}


def test_each_altered_file_is_named(explorer):
    bundle, seen = Bundle(explorer), set()
    for path in [path for path in explorer.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]:
        name, content, times = path.relative_to(explorer), path.read_bytes(), path.stat()
        for damage in DAMAGES.values():
            path.write_bytes(damage(content))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            with pytest.raises(BundleError) as error:
                bundle.check()
            assert str(error.value).startswith(f"{explorer}: {name} has changed since it was built; ")
        path.unlink()
        with pytest.raises(BundleError, match=rf"{name} is missing since it was built"):
            bundle.check()
        path.write_bytes(content)
        bundle.check()
        seen.add(path.suffix)
    assert seen == {".html", ".css", ".js", ".jpg"}


@pytest.mark.parametrize("damage", [*DAMAGES.values(), None])
def test_the_list_itself_is_noticed(explorer, damage):
    sums = explorer / "SHA256SUMS"
    sums.unlink() if damage is None else sums.write_bytes(damage(sums.read_bytes()))
    with pytest.raises(BundleError):
        Bundle(explorer).check()


def test_readers_refuse_what_was_altered(explorer, capsys):
    """Each file when it is read: what is sound of a large explorer can be read at once."""
    path = explorer / "data/codes-0001.js"
    path.write_bytes(another(path.read_bytes()))
    with pytest.raises(BundleError, match=r"data/codes-0001\.js has changed since it was built; build the explorer"):
        Bundle(explorer).code(65)
    Bundle(explorer).code(3)
    for number in range(5):
        image = explorer / f"images/0000/00000{number}.jpg"
        image.write_bytes(another(image.read_bytes()))
    assert main(["figure", str(explorer), "--codes", "1", "--into", str(explorer.parent / "codes.png")]) == 2
    assert ".jpg has changed since it was built" in capsys.readouterr().err
    path = explorer / "data/meta.js"
    path.write_bytes(another(path.read_bytes()))
    with pytest.raises(BundleError, match=r"data/meta\.js has changed since it was built"):
        Bundle(explorer)


@pytest.fixture
def later(built_run, tmp_path):
    """A run at step 4 whose explorer was built, and that may be changed."""
    return shutil.copytree(built_run[0], tmp_path / "tiny")


def test_what_was_altered_is_built_anew_and_says_that_the_models_run_went_on(later, capsys):
    page = later / "explorer/app/code.js"
    sound = page.read_bytes()
    page.write_bytes(another(sound))
    (later / "checkpoints/step-00000009").mkdir(parents=True)
    assert main(["build", str(later)]) == 0
    on = f"{later / 'model'} is of step 4; its run has gone on to step 9"
    assert page.read_bytes() == sound and capsys.readouterr().out.splitlines()[0] == on
    Bundle(later / "explorer").check()


def test_an_explorer_beside_a_newer_model_says_so(later, capsys):
    about = json.loads((later / "model/run.json").read_text())
    assert Bundle(later / "explorer").meta["run"] == about and about["step"] == 4
    assert "torch" in Bundle(later / "explorer").meta["program"] and about["program"]["soho_fast"]
    assert main(["figure", str(later), "--columns", "2"]) == 0
    assert "built of the model of step" not in capsys.readouterr().out
    write_run_of(later / "model", 6, about["identity"])
    line = f"{later / 'explorer'} was built of the model of step 4; {later / 'model'} is of step 6 by now"
    assert main(["figure", str(later), "--columns", "2"]) == 0
    assert f"{line}\n" in capsys.readouterr().out
    write_run_of(later / "model", 4, "another")
    assert main(["figure", str(later), "--columns", "2"]) == 0
    said = capsys.readouterr().out
    assert f"built of the model of step 4; {later / 'model'} is another one of step 4 by now\n" in said
