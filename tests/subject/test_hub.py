"""Hub repositories, against a small HTTP server that answers as the hub does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from planted_adapters import adapted_logits, write_adapter

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import CorpusSource, SubjectConfig
from saeinterp.errors import DataError, SubjectError
from saeinterp.subject import load_subject, origins, prepare_subject, prepare_subject_recipe, subject_info
from saeinterp.subject.sources import read_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"org/gated": (403, "GatedRepo"), "org/absent": (401, "RepoNotFound")}


class Hub:
    """Serves one folder as `org/planted`, a pickled copy as `org/pickled`, and refuses others."""

    def __init__(self, folder: Path) -> None:
        hub = self
        self.requests: list[str] = []
        self.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
                repository = "/".join(path.split("/")[:2])
                if repository in REFUSALS:
                    status, code = REFUSALS[repository]
                    self._send(status, b"{}", {"X-Error-Code": code})
                elif "/nonsense" in path:
                    self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                elif self.path.startswith("/api/models/"):
                    pickled = repository == "org/pickled"
                    names = [
                        name.replace("model.safetensors", "pytorch_model.bin") if pickled else name
                        for name in hub.files
                    ]
                    siblings = [{"rfilename": name} for name in names]
                    listing = [
                        {"type": "file", "path": name, "size": len(data), "oid": f"{index:040x}"}
                        for index, (name, data) in enumerate(zip(names, hub.files.values(), strict=True))
                    ]
                    body = listing if "/tree/" in path else {"id": repository, "sha": COMMIT, "siblings": siblings}
                    self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
                else:
                    name = path.rsplit("/", 1)[-1]
                    data = hub.files[name]
                    self._send(200, data, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

            def do_HEAD(self) -> None:
                self.do_GET()

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(planted_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    fake = Hub(planted_folder)
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    origins._ask_hub_commit.cache_clear()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join(timeout=10)
    origins._ask_hub_commit.cache_clear()


def test_a_hub_model_is_pinned_to_its_commit_fetched_and_loaded(
    hub: Hub, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SubjectConfig(model="org/planted", dtype="float32")
    made = prepare_subject(config, store=store)
    assert subject_info(made)["revision"] == COMMIT
    assert load_subject(made, device="cpu").num_layers == 3
    # Pinned by hand, the recipe is the same and asks nobody.
    asked = len(hub.requests)
    assert prepare_subject_recipe(config.model_copy(update={"revision": COMMIT})).hash == made.hash
    assert len(hub.requests) == asked


def test_a_hub_adapter_is_pinned_to_its_commit_and_merged(hub: Hub, store: ArtifactStore, planted_folder: Path) -> None:
    folder = write_adapter(store.root.parent / "lora", planted_folder)
    hub.files |= {path.name: path.read_bytes() for path in folder.glob("adapter_*")}
    config = SubjectConfig(model="org/planted", adapter="org/lora", dtype="float32")
    made = prepare_subject(config, store=store)
    about = subject_info(made)["adapter"]
    assert (about["commit"], about["title"]) == (COMMIT, "lora")
    ids = torch.arange(3, 20)[None]
    found = load_subject(made, device="cpu").model(input_ids=ids).logits
    torch.testing.assert_close(found, adapted_logits(planted_folder, folder, ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(SubjectError, match=r"subject\.adapter: is gated on the hub"):
        prepare_subject(config.model_copy(update={"adapter": "org/gated"}), store=store)
    with pytest.raises(SubjectError, match=r"subject\.adapter_revision: has no such revision"):
        prepare_subject(config.model_copy(update={"adapter_revision": "nonsense"}), store=store)


def test_only_description_and_safetensors_are_fetched(hub: Hub, store: ArtifactStore) -> None:
    hub.files["modeling_sneaky.py"] = b"raise SystemExit"
    hub.files["training_args.bin"] = b"pickle"
    made = prepare_subject(SubjectConfig(model="org/planted", dtype="float32"), store=store)
    fetched = {path.name for path in Path(subject_info(made)["path"]).iterdir()}
    assert "model.safetensors" in fetched
    assert not fetched & {"modeling_sneaky.py", "training_args.bin"}


def test_the_control_of_a_hub_model_fetches_no_weights(hub: Hub, store: ArtifactStore) -> None:
    made = prepare_subject(SubjectConfig(model="org/planted", weights="random", dtype="float32"), store=store)
    assert not any("safetensors" in request for request in hub.requests)
    assert load_subject(made, device="cpu").name == "planted (random weights)"


def test_a_repository_with_pickles_only_is_refused_before_anything_is_fetched(hub: Hub, store: ArtifactStore) -> None:
    with pytest.raises(SubjectError, match=r"pickled \(pytorch_model\.bin\).*org/pickled.*Expected \*\.safetensors"):
        prepare_subject(SubjectConfig(model="org/pickled", dtype="float32"), store=store)
    assert not any("/resolve/" in request for request in hub.requests)


def test_a_gated_model_says_where_to_ask(hub: Hub) -> None:
    with pytest.raises(SubjectError, match=r"is gated on the hub.*org/gated.*huggingface\.co/org/gated.*HF_TOKEN"):
        prepare_subject_recipe(SubjectConfig(model="org/gated"))


def test_a_model_that_is_not_there_says_so(hub: Hub) -> None:
    with pytest.raises(SubjectError, match=r"no public repository on the hub.*org/absent.*Next: check the spelling"):
        prepare_subject_recipe(SubjectConfig(model="org/absent"))


def test_a_revision_that_is_not_there_says_so(hub: Hub) -> None:
    with pytest.raises(SubjectError, match=r"subject\.revision: has no such revision.*org/planted@nonsense"):
        prepare_subject_recipe(SubjectConfig(model="org/planted", revision="nonsense"))


def test_a_hub_that_does_not_answer_says_so(hub: Hub) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(SubjectError, match=r"cannot be reached.*org/planted.*check the spelling and the network"):
        prepare_subject_recipe(SubjectConfig(model="org/planted"))


@pytest.mark.slow  # datasets retries for half a minute
def test_a_dataset_whose_hub_does_not_answer_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    hub.server.shutdown()
    hub.server.server_close()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"the hub cannot be reached.*org/data.*Next: check the network"):
        list(read_source(CorpusSource(name="org/data"), seed=0))
