"""Curves as TensorBoard and W&B read them: every point, once, with no secret and no trace of the machine's user."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from planted_saes import HOOKPOINTS, train_planted_saes

from saeinterp.artifacts import Artifact
from saeinterp.errors import ArtifactError, ConfigError, DamagedArtifactError, DataError, MissingDependencyError
from saeinterp.sae.export import FINAL_TAGS, TAGS, Exported, export_curves
from saeinterp.sae.finished import open_sae, read_finished

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saes(planted_folder: Path, planted_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Two trained SAEs."""
    return train_planted_saes(tmp_path_factory.mktemp("export"), subject=planted_folder, corpus=planted_corpus)


def columns(sae: Artifact) -> pl.DataFrame:
    """Curves and timing side by side, as Parquet readers see them."""
    timing = pl.read_parquet(sae.file("timing.parquet"))
    return pl.read_parquet(sae.file("curves.parquet")).join(timing, on="step", validate="1:1")


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def _needed(self) -> None:
        pytest.importorskip("tensorboard", reason="pip install tensorboard")

    def test_every_curve_reads_back_at_its_steps(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

        written = export_curves(list(saes.values()), to="tensorboard", folder=tmp_path)
        reader = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(tmp_path))
        reader.Reload()
        assert set(reader.Runs()) == {run.run for run in written} == {sae.path.name for sae in saes.values()}
        for sae in saes.values():
            run, table = sae.path.name, columns(sae)
            assert set(reader.Runs()[run]["scalars"]) == {*TAGS, *FINAL_TAGS}
            for tag, column in TAGS.items():
                events = reader.Scalars(run, tag)
                assert [event.step for event in events] == table["step"].to_list()
                assert [event.value for event in events] == pytest.approx(table[column].to_list(), rel=1e-6)
            summary = json.loads(sae.file("training.json").read_text())
            assert reader.Scalars(run, "final/dead")[0].value == summary["dead"]
            elapsed = [event.wall_time - events[0].wall_time for event in events]
            seconds = table["seconds"].to_list()
            assert elapsed == pytest.approx([second - seconds[0] for second in seconds], abs=1e-3)

    def test_hyperparameters_stand_beside_the_curves(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

        run = export_curves([saes["layers.1"]], to="tensorboard", folder=tmp_path)[0]
        reader = EventAccumulator(str(run.path.parent))
        reader.Reload()
        contents = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        values = parse_session_start_info_plugin_data(contents).hparams
        assert values["training.num_latents"].number_value == 20
        assert values["training.batch_rows"].number_value == 256
        assert values["activation"].string_value == "topk"
        assert values["hardware.cores"].number_value >= 1

    def test_exporting_again_replaces_a_run(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        first = export_curves(list(saes.values()), to="tensorboard", folder=tmp_path)
        before = folder_bytes(tmp_path)
        assert export_curves(list(saes.values()), to="tensorboard", folder=tmp_path) == first
        assert folder_bytes(tmp_path) == before
        assert len(before) == len(saes)

    def test_a_name_makes_a_folder_of_its_own(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        run = export_curves([saes["layers.2"]], to="tensorboard", folder=tmp_path, name="sweep 1")[0]
        assert run.path.parent == tmp_path / "sweep 1" / saes["layers.2"].path.name

    def test_an_sae_given_twice_is_one_run(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        sae = saes["layers.1"]
        assert len(export_curves([sae, sae.path, str(sae.path)], to="tensorboard", folder=tmp_path)) == 1

    def test_the_artifact_itself_is_never_written_to(self, saes: dict[str, Artifact]) -> None:
        sae = saes["layers.1"]
        before = folder_bytes(sae.path)
        with pytest.raises(ConfigError, match="inside an artifact"):
            export_curves([sae], to="tensorboard", folder=sae.path.parent)
        assert folder_bytes(sae.path) == before

    def test_options_of_wandb_are_refused(self, saes: dict[str, Artifact], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="W&B only"):
            export_curves([saes["layers.1"]], to="tensorboard", folder=tmp_path, offline=False)
        with pytest.raises(ConfigError, match="W&B only"):
            export_curves([saes["layers.1"]], to="tensorboard", folder=tmp_path, project="p")


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, body = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += 7
        body += data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or last part
            record = Record()
            record.ParseFromString(body)
            yield record
            body = b""


@pytest.fixture(scope="module")
def wandb_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder, while the environment holds a key and settings for other work, which have no say here."""
    pytest.importorskip("wandb", reason="pip install wandb")
    place = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("WANDB_DIR", str(place / "elsewhere"))
        patch.setenv("WANDB_CACHE_DIR", str(place / "cache"))
        yield place


@pytest.fixture(scope="module")
def run(saes: dict[str, Artifact], wandb_folder: Path) -> Exported:
    """One SAE, exported offline."""
    folder = wandb_folder / "out"
    return export_curves([saes["layers.1"]], to="wandb", folder=folder, project="p", name="sweep")[0]


class TestWandb:
    def test_an_offline_run_holds_every_point_and_the_settings(self, saes: dict[str, Artifact], run: Exported) -> None:
        found = list(records(next(run.path.glob("*.wandb"))))
        history = []
        for record in found:
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
                history.append({key: json.loads(value) for key, value in items.items()})
        table = columns(saes["layers.1"])
        assert [row["_step"] for row in history] == table["step"].to_list()
        for tag, column in TAGS.items():
            assert [row[tag] for row in history] == pytest.approx(table[column].to_list(), rel=1e-12)
        assert history[-1]["final/fvu_heldout"] == table["fvu_heldout"][-1]
        about = next(record.run for record in found if record.WhichOneof("record_type") == "run")
        assert (about.project, about.display_name, about.run_group) == ("p", saes["layers.1"].path.name, "sweep")
        assert about.run_id == saes["layers.1"].hash
        config = {update.key: json.loads(update.value_json) for update in about.config.update}
        assert config["training"]["num_latents"] == 20
        assert config["hookpoint"] == "layers.1"

    def test_no_key_no_host_no_user_and_no_code_is_recorded(self, run: Exported, wandb_folder: Path) -> None:
        assert run.url is None
        assert not (wandb_folder / "elsewhere").exists()
        files = folder_bytes(wandb_folder)
        assert not [name for name, data in files.items() if KEY.encode() in data]
        about = next(
            record.run
            for record in records(next(run.path.glob("*.wandb")))
            if record.WhichOneof("record_type") == "run"
        )
        assert not about.git.remote_url
        assert not about.git.commit
        assert about.host != socket.gethostname()
        recorded = next(run.path.glob("*.wandb")).read_bytes()
        for word in (str(Path.cwd()), str(wandb_folder), sys.executable, f"/{getpass.getuser()}/"):
            assert word.encode() not in recorded
        assert not [name for name in files if Path(name).name in ("wandb-metadata.json", "requirements.txt")]

    def test_exporting_again_leaves_one_run_of_each(self, saes: dict[str, Artifact], run: Exported) -> None:
        folder = run.path.parent
        again = export_curves([saes["layers.1"], saes["layers.2"]], to="wandb", folder=folder.parent)
        assert {path for path in folder.iterdir() if path.is_dir()} == {item.path for item in again}

    def test_uploading_without_a_key_ends_with_what_to_do(
        self, saes: dict[str, Artifact], tmp_path: Path, wandb_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
        with pytest.raises(ArtifactError, match="wandb login"):
            export_curves([saes["layers.1"]], to="wandb", folder=tmp_path, offline=False)


@pytest.mark.parametrize(
    ("to", "module"), [("tensorboard", "tensorboard.summary.writer.record_writer"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    saes: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {to}"):
        export_curves([saes["layers.1"]], to=to, folder=tmp_path)


def test_nothing_is_written_when_one_folder_is_wrong(saes: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        export_curves([saes["layers.1"], tmp_path / "nothing"], to="tensorboard", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused(saes: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to export"):
        export_curves([], to="tensorboard", folder=tmp_path)
    with pytest.raises(ConfigError, match="tensorboard or wandb"):
        export_curves([saes["layers.1"]], to="mlflow", folder=tmp_path)  # type: ignore[arg-type]
    for name in ("..", "a/b", ""):
        with pytest.raises(ConfigError, match="not a name"):
            export_curves([saes["layers.1"]], to="tensorboard", folder=tmp_path, name=name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        export_curves([saes["layers.1"]], to="tensorboard", folder=tmp_path / "file" / "out")


def test_a_copied_folder_reads_as_the_artifact_it_is(saes: dict[str, Artifact], tmp_path: Path) -> None:
    for hookpoint in HOOKPOINTS:
        copy = shutil.copytree(saes[hookpoint].path, tmp_path / f"copy of {hookpoint}")
        assert open_sae(copy) == saes[hookpoint].model_copy(update={"recorded": copy})
        finished = read_finished(copy)
        assert finished.summary["hookpoint"] == hookpoint
        assert [row["step"] for row in finished.curves] == columns(saes[hookpoint])["step"].to_list()


@pytest.mark.parametrize("name", ["training.json", "curves.parquet", "timing.parquet", "manifest.json"])
def test_a_damaged_file_is_named_with_a_remedy(saes: dict[str, Artifact], tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(saes["layers.1"].path, tmp_path / "copy")
    (copy / name).write_bytes(b"\x00")
    with pytest.raises(DamagedArtifactError, match="run"):
        read_finished(copy)


def test_tables_of_different_runs_are_refused(saes: dict[str, Artifact], tmp_path: Path) -> None:
    copy = shutil.copytree(saes["layers.1"].path, tmp_path / "copy")
    pl.read_parquet(copy / "timing.parquet").head(3).write_parquet(copy / "timing.parquet")
    with pytest.raises(DamagedArtifactError, match="different runs"):
        read_finished(copy)


def test_other_artifacts_and_folders_are_no_saes(saes: dict[str, Artifact], tmp_path: Path) -> None:
    corpus = next((saes["layers.1"].path.parent.parent / "corpus").iterdir())
    with pytest.raises(DataError, match="not an SAE"):
        open_sae(corpus)
    with pytest.raises(DataError, match="not a finished artifact"):
        open_sae(tmp_path)
