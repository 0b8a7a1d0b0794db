"""Publishing a model and loading it by its name, against a server on this machine that answers as the hub does."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OID = "0123456789abcdef0123456789abcdef01234567"
PUBLISH = """
import sys
import torch
from pathlib import Path
from huggingface_hub import HfApi
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.text import load_tokenizer
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer
from soho_fast.model import SohoConfig, SohoForPreTraining

folder = Path(sys.argv[1])
write_tokenizer(folder, build_vocabulary(["a dog and a cat"]))
processor = SohoProcessor(SohoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}), load_tokenizer(folder))
sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_codes=8)
model = SohoForPreTraining(SohoConfig(backbone="resnet10", vocab_size=len(processor.tokenizer), **sizes))
model.push_to_hub("ada/pushed")
processor.push_to_hub("ada/pushed")
model.save_pretrained(folder)
processor.save_pretrained(folder)
(folder / "README.md").write_text("# A card")
HfApi().create_repo("ada/uploaded")
HfApi().upload_folder(repo_id="ada/uploaded", folder_path=folder)
for name in ("ada/pushed", "ada/uploaded"):
    again = SohoForPreTraining.from_pretrained(name)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()), name
    assert SohoProcessor.from_pretrained(name).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
print("loaded again")
"""


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, takes commits whose files are in the request, gives files; all else is not there."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]] = {}  # noqa: RUF012 - of the one server
    tokens: set[str | None] = set()  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": OID, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            about = json.loads(body)
            name = "/".join(filter(None, (about.get("organization"), about["name"])))
            self.files.setdefault(name, {})
            self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main(\?.*)?", self.path):
            asked = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
            )
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": OID, "commitUrl": f"http://{self.headers['Host']}/c/{OID}"})
        else:
            self.answer({}, 200 if self.path == "/api/validate-yaml" else 404)

    def do_GET(self):
        found = re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", self.path.partition("?")[0])
        content = self.files.get(found[1], {}).get(found[2]) if found else None
        if content is None:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
        else:
            self.answer(content, ETag=f'"{hash(content)}"')

    do_HEAD = do_GET


def test_a_model_is_published_and_loaded_by_its_name(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_stand_in",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", PUBLISH, str(tmp_path / "model")],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert done.returncode == 0 and "loaded again" in done.stdout, done.stderr[-3000:]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(Hub.files["ada/pushed"])
    assert Hub.files["ada/uploaded"]["README.md"] == b"# A card"
    assert Hub.tokens == {"Bearer hf_stand_in"}
