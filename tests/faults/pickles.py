"""Files that run code when they are unpickled or imported, planted wherever a run folder or a model is read."""

import hashlib
import json
import pickle
import random
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from corruption import evaluated_again, picture, without_checkpoints
from tiny_runs import STEPS, Bench, LostError, run


class _Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return exec, (f"open({self.marker!r}, 'w').write('executed')",)


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the places."""
    every = places(bench)
    place, marker = every[seed % len(every)], folder / "executed"
    try:
        place(folder, marker)
    except LostError as lost:
        if not marker.exists():
            raise LostError(f"{place.func.__name__} {place.args[1:]}: {lost}") from None
    if marker.exists():
        raise LostError(f"{place.func.__name__} {place.args[1:]}: code of a planted file was executed")
    return 1


def places(bench: Bench) -> list[partial]:
    """All places, in an order that mixes them."""
    names = sorted(
        path.name
        for path in (bench.folder / f"vqa-half/checkpoints/step-{STEPS - 2:08d}").iterdir()
        if path.suffix not in (".json", ".safetensors")
    )
    checkpoints = [partial(_in_checkpoints, bench, name, every) for name in names for every in (False, True)]
    models = [partial(_in_a_model, bench, name, how) for name in _WEIGHTS for how in ("evaluate", "ask", "pretrained")]
    code = [
        partial(_code_in_a_model, bench, name)
        for name in ("config.json", "tokenizer_config.json", "processor_config.json")
    ]
    rest = [
        partial(_as_backbone, bench),
        partial(_as_text_encoder, bench),
        partial(_in_a_part, bench),
        partial(_in_yaml, bench),
    ]
    every = checkpoints + models + code + rest
    return random.Random(0).sample(every, len(every))


_WEIGHTS = ("pytorch_model.bin", "model.safetensors", "training_args.bin", "tokenizer.pkl")


def _plant(path: Path, marker: Path, as_zip: bool = True) -> None:
    """A pickle alone, or in the zip that torch.save writes."""
    data = pickle.dumps(_Payload(marker), protocol=2)
    if not as_zip:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def _in_checkpoints(bench: Bench, name: str, every: bool, folder: Path, marker: Path) -> None:
    """In the newest checkpoint or in all of them, with sizes and checksums made to fit."""
    output = bench.copy("vqa-half", folder / "run")
    for path in sorted((output / "checkpoints").glob(f"step-*/{name}"))[0 if every else -1 :]:
        before = path.read_bytes()
        _plant(path, marker)
        for manifest in path.parent.glob("*.json"):
            fitted = _fitted(json.loads(manifest.read_text()), before, path.read_bytes())
            manifest.write_text(json.dumps(fitted, indent=1))
    run(bench.train("vqa", output)).expect(0, 2, where="resumed")


def _fitted(manifest: dict[str, Any], before: bytes, after: bytes) -> dict[str, Any]:
    """A manifest that says of the file after what it said of the one before, and agrees with itself."""

    def fit(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fit(item) for name, item in value.items()}
        sums = (len, lambda data: hashlib.sha256(data).hexdigest())
        return next((make(after) for make in sums if value == make(before)), value)

    fitted = fit({name: value for name, value in manifest.items() if name != "sha256"})
    return {**fitted, "sha256": hashlib.sha256(json.dumps(fitted, sort_keys=True).encode()).hexdigest()}


def _in_a_model(bench: Bench, name: str, how: str, folder: Path, marker: Path) -> None:
    task, part = ("pretraining", "model") if how == "pretrained" else ("vqa", "best")
    source = without_checkpoints(bench.folder / task, folder / "source")
    (source / part / "SHA256SUMS").unlink()
    if name in ("pytorch_model.bin", "model.safetensors"):
        (source / part / "model.safetensors").unlink()
    _plant(source / part / name, marker)
    run(reading(bench, source, how, folder)).expect(0, 2, where=how)


def reading(bench: Bench, source: Path, how: str, folder: Path) -> list[str]:
    """A command that reads the model of a run: the pre-trained one where `how` is `pretrained`."""
    if how == "evaluate":
        return bench.evaluate(source, folder / "into")
    if how == "ask":
        return ["ask", "answer", str(source), str(picture(bench)), "how many dogs are there?"]
    return bench.train("vqa", folder / "run", "--model.pretrained", str(source / "model"), "--max_steps", "1")


def _code_in_a_model(bench: Bench, name: str, folder: Path, marker: Path) -> None:
    """A file that names classes of a module beside it, as hubs do."""
    source = without_checkpoints(bench.folder / "vqa", folder / "source")
    (source / "best" / "SHA256SUMS").unlink()
    path = source / "best" / name
    values = json.loads(path.read_text()) if path.exists() else {}
    classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    values["auto_map"] = {
        kind: ["planted.Planted", "planted.Planted"] if "Token" in kind else "planted.Planted" for kind in classes
    }
    path.write_text(json.dumps(values))
    (path.parent / "planted.py").write_text(f"open({str(marker)!r}, 'w').write('executed')\nclass Planted: pass\n")
    run(bench.evaluate(source, folder / "into")).expect(0, 2, where="evaluate")
    run(["ask", "answer", str(source), str(picture(bench)), "how many?"]).expect(0, 2, where="ask")


def _as_backbone(bench: Bench, folder: Path, marker: Path) -> None:
    for as_zip in (True, False):
        _plant(folder / "backbone.pth", marker, as_zip)
        more = ["--model.backbone", str(folder / "backbone.pth"), "--max_steps", "1"]
        run(bench.train("pretraining", folder / "run", *more)).expect(0, 2, where="backbone")


def _as_text_encoder(bench: Bench, folder: Path, marker: Path) -> None:
    encoder = folder / "bert"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    _plant(encoder / "pytorch_model.bin", marker)
    more = ["--model.text_encoder", str(encoder), "--max_steps", "1"]
    run(bench.train("pretraining", folder / "run", *more)).expect(0, 2, where="text encoder")


def _in_a_part(bench: Bench, folder: Path, marker: Path) -> None:
    def plant(path: Path) -> None:
        _plant(path, marker)
        content, identity = path.read_bytes(), json.loads((path.parent / "identity.json").read_text())
        sealed = f"{json.dumps(identity, sort_keys=True)}\0{int(path.stem[5:])}\0".encode() + content
        path.write_bytes(hashlib.sha256(sealed).digest() + content)

    evaluated_again(bench, 1, folder, plant)


def _in_yaml(bench: Bench, folder: Path, marker: Path) -> None:
    values = yaml.safe_load(bench.recipes["vqa"].read_text())
    code = f"open({str(marker)!r}, 'w').write('executed')"
    planted = folder / "planted.yaml"
    for tag in ("!!python/object/apply:builtins.exec", "!!python/object/new:exec"):
        planted.write_text(yaml.safe_dump(values) + f"\nseed: {tag} [{json.dumps(code)}]\n")
        run(["train", "--recipe", str(planted), "--output", str(folder / "run")]).expect(2, where="recipe")
