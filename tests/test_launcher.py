"""From a spec to a tracked run: the MLflow contract, repeatability, and runs that do not end well."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, tiny
from PIL import Image
from safetensors.torch import load_file

import nlt
from nlt.data import Digits
from nlt.launcher import Listener, Options, RunFailed, launch, resume, unfinished_runs
from nlt.prepare import prepare
from nlt.reading import check
from nlt.settings import BadInput
from nlt.tracking import Store, final_metrics, open_store, params
from nlt.view import TAG


def spec_of(**changes):
    return check(tiny(**changes), "tiny")


def run_of(store: Store, result):
    return store.client.get_run(result.run_id)


def history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.client.get_metric_history(run_id, key)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, template_store):
    """One finished run of the tiny O2U experiment, with a model: (store, result, folder of its artifacts)."""
    import shutil

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(template_store, folder / "store")
    uri = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
    spec = spec_of(data={"name": "digits", "limit": 125, "val_fraction": 0.2})
    result = nlt.launch(spec, seed=3, options=Options(device="cpu", tracking_uri=uri, log_model=True))
    store = open_store(uri)
    artifacts = Path(store.client.download_artifacts(result.run_id, "", str(folder)))
    return store, result, artifacts


def test_run_params_and_tags(finished):
    store, result, _ = finished
    run = run_of(store, result)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
    assert store.client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.params == {
        "data": "digits", "train_images": "100", "noise": "symmetric", "noise_rate": "0.4", "noise_seed": "0",
        "model": "cnn9", "width": "0.03", "eval_dropout": "False", "method": "o2u", "loss": "CE", "epochs": "2+3+2", "batch_size": "32/16/32",
        "lr": "0.01/0.007/0.01", "weight_decay": "0.0001", "forget_rate": "0.4", "restart": "pretrained", "seed": "3",
        "precision": "fp32",
    }  # fmt: skip
    tags = {
        k: v
        for k, v in run.data.tags.items()
        if k.startswith("nlt.")
        and k not in ("nlt.git_commit", "nlt.version", "nlt.sweep", "nlt.launch_id", "nlt.folder")
    }
    assert tags == {
        "nlt.method": "o2u", "nlt.dataset": "digits", "nlt.noise": "symmetric 0.4", "nlt.model": "cnn9 width 0.03", "nlt.seed": "3",
        "nlt.profile": "custom", "nlt.device": "cpu", "nlt.threads": "1",
        "nlt.compile": "off",
        "nlt.spec_sha256": spec_of(data={"name": "digits", "limit": 125, "val_fraction": 0.2}).sha256(),
    }  # fmt: skip
    assert len(run.data.tags["nlt.git_commit"]) >= 7
    assert run.data.tags["nlt.sweep"]
    assert "mlflow.parentRunId" not in run.data.tags  # nested runs leave the UI's charts empty


def test_run_metrics_by_step(finished):
    store, result, _ = finished
    every = range(1, 8)
    for key in ("train/loss", "train/accuracy", "test/accuracy", "val/accuracy", "optim/lr", "time/epoch_seconds",
                "time/images_per_second"):  # fmt: skip
        assert [step for step, _ in history(store, result.run_id, key)] == list(every), key
    for key in ("noise/precision", "noise/recall", "noise/remaining", "noise/auc"):
        assert [step for step, _ in history(store, result.run_id, key)] == [3, 4, 5], key
    assert [lr for _, lr in history(store, result.run_id, "optim/lr")] == pytest.approx([0.01] * 2 + [0.007, 0.004, 0.001] + [0.01] * 2)  # fmt: skip
    for step, epoch in enumerate(result.epochs, start=1):
        for key, value in epoch.metrics.items():
            assert (step, value) in history(store, result.run_id, key)


def test_images_left_out_are_an_artifact(store, store_uri, tmp_path):
    for name in ("train/cat/a", "train/cat/b", "train/dog/c", "train/dog/d", "test/cat/e"):
        file = tmp_path / "pets" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    (tmp_path / "pets" / "train" / "dog" / "ö, c.jpg").touch()
    data = {"name": "image_folder", "path": str(tmp_path / "pets"), "on_bad_image": "skip"}
    stage = {"epochs": 1, "batch_size": 2, "schedule": {"name": "constant", "lr": 0.01}}
    spec = spec_of(data=data, noise={"name": "none"}, method={"name": "standard", "training": stage})
    result = nlt.launch(spec, options=Options(device="cpu", tracking_uri=store_uri, data_root=tmp_path))
    written = store.client.download_artifacts(result.run_id, "left_out.csv", str(tmp_path))
    with Path(written).open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["file", "reason"], ["train/dog/ö, c.jpg", "the file is empty"]]
    with pytest.raises(BadInput, match="ö, c.jpg cannot be decoded"):
        nlt.launch(
            spec_of(data=data | {"on_bad_image": "error"}), options=Options(tracking_uri=store_uri, data_root=tmp_path)
        )


def test_final_metrics_by_hand(finished):
    store, result, _ = finished
    data = run_of(store, result).data.metrics
    test = dict(history(store, result.run_id, "test/accuracy"))
    val = dict(history(store, result.run_id, "val/accuracy"))
    assert data["final/test_accuracy_last"] == test[7]
    assert data["final/test_accuracy_mean10"] == pytest.approx((test[6] + test[7]) / 2)  # the last stage has two epochs
    assert data["final/test_accuracy_at_best_val"] == test[6 if val[6] >= val[7] else 7]
    assert data["final/noise_precision"] == dict(history(store, result.run_id, "noise/precision"))[5]
    assert result.metrics == {k: v for k, v in data.items() if k.startswith("final/")}


def test_at_best_val_takes_the_first_of_equals():
    epochs = [
        type("E", (), {"stage": "s", "detects": False, "metrics": {"time/epoch_seconds": 1.0, "test/accuracy": t, "val/accuracy": v}})
        for t, v in [(0.1, 0.5), (0.2, 0.9), (0.3, 0.9), (0.4, 0.1)]
    ]  # fmt: skip
    final = final_metrics(epochs)
    assert final["final/test_accuracy_at_best_val"] == 0.2
    assert final["final/test_accuracy_last"] == 0.4
    assert final["final/train_seconds"] == 4.0


def test_artifacts_hold_what_was_computed(finished):
    _, result, artifacts = finished
    names = {p.name for p in artifacts.iterdir()}
    assert names >= {
        "spec.json", "transition_matrix.json", "losses.npz", "masks.npz", "detections.csv", "detections.png",
        "weights.safetensors", "images",
    }  # fmt: skip
    losses = np.load(artifacts / "losses.npz")
    assert losses["losses"].shape == (7, 100)
    assert losses["losses"].dtype == np.float16
    for row, epoch in zip(losses["losses"], result.epochs, strict=True):
        np.testing.assert_allclose(row, epoch.losses_N.numpy(), rtol=1e-3, atol=1e-6)
    masks = np.load(artifacts / "masks.npz")
    keep_DN = np.unpackbits(masks["keep"], axis=1, count=100).astype(bool)
    assert masks["steps"].tolist() == [3, 4, 5]
    for row, epoch in zip(keep_DN, result.epochs[2:5], strict=True):
        assert row.tolist() == epoch.keep_N.tolist()
    assert (masks["ids"] == losses["ids"]).all()
    weights = load_file(artifacts / "weights.safetensors")
    assert weights["linear.weight"].shape == (10, round(0.03 * 128))


def test_detections_csv_names_each_sample_once_most_suspicious_first(finished):
    _, result, artifacts = finished
    rows = list(csv.DictReader((artifacts / "detections.csv").open()))
    assert list(rows[0]) == ["id", "given_label", "score", "removed", "clean_label"]
    prepared = prepare(spec_of(data={"name": "digits", "limit": 125, "val_fraction": 0.2}), 3, "cpu", "data")
    train = prepared.train
    by_id = {int(i): n for n, i in enumerate(train.ids_N)}
    assert {int(row["id"]) for row in rows} == set(by_id)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [row["removed"] for row in rows] == ["1"] * 40 + ["0"] * 60
    original = Digits().load(Path("data"))  # ids are places in scikit-learn's order
    truth = dict(zip(original.train.ids_N.tolist(), original.train.labels_N.tolist(), strict=True))
    for row in rows:
        assert row["given_label"] == str(int(train.labels_N[by_id[int(row["id"])]]))
        assert row["clean_label"] == str(truth[int(row["id"])])
    wrong = [row["given_label"] != row["clean_label"] for row in rows]
    assert sum(wrong[:40]) / 40 == result.metrics["final/noise_precision"]


def test_spec_json_launches_the_same_run_again(finished):
    _, _, artifacts = finished
    data = json.loads((artifacts / "spec.json").read_text())
    assert data.pop("seed") == 3
    assert check(data, "spec.json") == spec_of(data={"name": "digits", "limit": 125, "val_fraction": 0.2})


def test_transition_matrix_asked_and_drawn(finished):
    store, result, artifacts = finished
    data = json.loads((artifacts / "transition_matrix.json").read_text())
    asked, drawn = np.array(data["asked"]), np.array(data["drawn"])
    assert asked[0] == pytest.approx([0.6] + [0.4 / 9] * 9)
    assert drawn.sum(1) == pytest.approx(1)
    wrong = history(store, result.run_id, "noise/drawn_rate")
    assert wrong[0][0] == 0
    assert 0.2 < wrong[0][1] < 0.6


def test_a_histogram_image_per_epoch_with_a_step(finished):
    _, _, artifacts = finished
    pictures = sorted((artifacts / "images").glob("*.png"))
    steps = sorted(int(p.name.split("+step+")[1].split("+")[0]) for p in pictures)
    assert steps == list(range(1, 8))
    assert np.asarray(Image.open(pictures[0])).std() > 10


def test_dataset_input(finished):
    store, result, _ = finished
    inputs = run_of(store, result).inputs.dataset_inputs
    assert [i.dataset.name for i in inputs] == ["digits"]
    assert len(inputs[0].dataset.digest) == 16


def test_runs_on_the_same_data_share_an_entry_that_is_true_of_each(store):
    """MLflow keeps the first of equal name and digest, so a validation split of one must not stand in it."""
    held_out = check(tiny(data={"name": "digits", "limit": 100, "val_fraction": 0.2}), "test")
    for one in (held_out, check(tiny(), "test")):
        (given,) = run_of(store, launch(one, store=store, options=Options(device="cpu"))).inputs.dataset_inputs
        assert json.loads(given.dataset.profile)["train"] == 100
        assert json.loads(given.dataset.source) == {
            "name": "digits", "classes": None, "limit": 100, "imbalance": 1.0, "seed": 0
        }  # fmt: skip


def test_the_logged_model_predicts_as_the_weights_do(finished):
    import mlflow

    store, result, artifacts = finished
    models = store.client.search_logged_models([result.experiment_id])
    assert len(models) == 1
    assert models[0].source_run_id == result.run_id
    mlflow.set_tracking_uri(store.uri)
    try:
        model = mlflow.pyfunc.load_model(models[0].model_uri)
    finally:
        mlflow.set_tracking_uri(None)
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    spec = spec_of()
    network = spec.model.build(1, 8, 8, 10)
    network.load_state_dict(load_file(artifacts / "weights.safetensors"))
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(model.predict(images), expected, atol=1e-5)


def test_logging_a_model_leaves_the_callers_tracking_uri_alone(finished):
    """MLflow's fluent API sets it for the whole process, and for its children."""
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_experiment_has_the_comparison_view(finished):
    store, result, _ = finished
    assert store.client.get_experiment(result.experiment_id).tags[TAG].startswith("deflate;")


# ---- numbers that reproduce ----


def comparable(result):
    return [
        ({k: v for k, v in e.metrics.items() if not k.startswith("time/")}, e.losses_N.tolist()) for e in result.epochs
    ]


@pytest.mark.parametrize("method", ["o2u", "standard"])
def test_same_spec_and_seed_twice_on_cpu_give_identical_metrics(store_uri, method):
    changes = {} if method == "o2u" else {"method": {"name": "standard", "training": {"epochs": 2, "batch_size": 32}}}
    first = nlt.launch(spec_of(**changes), seed=1, options=Options(device="cpu", tracking_uri=store_uri))
    torch.rand(100)  # whatever happened to the global generator in between
    again = nlt.launch(spec_of(**changes), seed=1, options=Options(device="cpu", tracking_uri=store_uri))
    other = nlt.launch(spec_of(**changes), seed=2, options=Options(device="cpu", tracking_uri=store_uri))
    assert str(comparable(first)) == str(comparable(again))  # as text, since NaN != NaN
    assert str(comparable(first)) != str(comparable(other))


def test_the_noise_does_not_depend_on_the_training_seed():
    a, b = (prepare(spec_of(), seed, "cpu", "data").train.labels_N.tolist() for seed in (0, 1))
    assert a == b
    other = spec_of(noise={"name": "symmetric", "rate": 0.4, "seed": 1})
    assert prepare(other, 0, "cpu", "data").train.labels_N.tolist() != a


def test_test_labels_are_never_corrupted_and_validation_labels_are():
    spec = spec_of(data={"name": "digits", "val_fraction": 0.5}, noise={"name": "symmetric", "rate": 0.5})
    prepared = prepare(spec, 0, "cpu", "data")
    clean = Digits().load(Path("data"))
    assert prepared.dataset.test.labels_N.tolist() == clean.test.labels_N.tolist()
    assert prepared.val is not None
    wrong = float((prepared.val.labels_N != prepared.val.clean_N).double().mean())
    assert 0.4 < wrong < 0.6
    assert not set(prepared.val.ids_N.tolist()) & set(prepared.train.ids_N.tolist())


def test_clean_labels_do_not_reach_the_numbers(store_uri, monkeypatch):
    """A run told other clean labels trains to the same weights, losses, masks and accuracies."""
    import nlt.launcher as module

    honest = nlt.launch(spec_of(), options=Options(device="cpu", tracking_uri=store_uri))
    real = module.prepare

    def lying(*args):
        prepared = real(*args)
        prepared.train.clean_N.copy_(prepared.train.clean_N.flip(0))
        return prepared

    monkeypatch.setattr(module, "prepare", lying)
    lied_to = nlt.launch(spec_of(), options=Options(device="cpu", tracking_uri=store_uri))
    for a, b in zip(honest.epochs, lied_to.epochs, strict=True):
        assert str(a.losses_N.tolist()) == str(b.losses_N.tolist())
        assert a.metrics["test/accuracy"] == b.metrics["test/accuracy"]
    assert honest.metrics["final/noise_precision"] != lied_to.metrics["final/noise_precision"]


# ---- what goes wrong ----


def test_bad_input_leaves_no_run(store_uri, store):
    pixels = {"name": "pixels"}

    def cleaned(backbone):
        return {"name": "cleaned", "backbone": backbone, "training": {"epochs": 1}}

    for spec, message in [
        (spec_of(noise={"name": "matrix", "rows": [[1, 0], [0, 1]]}), "give 10 rows"),
        (
            spec_of(noise={"name": "asymmetric", "rate": 0.1, "flips": {"cat": "1"}}),
            "'cat', which is not in the data set",
        ),
        (spec_of(data={"name": "digits", "classes": ["1", "x"]}), "no class 'x'"),
        (spec_of(data={"name": "npz", "path": "/nowhere.npz"}), "/nowhere.npz"),
        (spec_of(method=cleaned({"name": "timm", "architecture": "nonexistent"})), "has no network 'nonexistent'"),
        (spec_of(method=cleaned({"name": "timm", "architecture": "resnet50", "weights": "/no.pt"})), "/no.pt"),
        (spec_of(method=cleaned(pixels), data={"name": "digits", "limit": 8}), "at least 10 are needed"),
        (
            spec_of(method=cleaned(pixels), data={"name": "digits", "limit": 60, "classes": ["1", "2"]},
                    noise={"name": "asymmetric", "rate": 1.0, "flips": {"1": "2"}}),
            "all samples have the same label",
        ),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=message):
            nlt.launch(spec, options=Options(device="cpu", tracking_uri=store_uri))
    with pytest.raises(BadInput, match="--seed -1"):
        nlt.launch(spec_of(), seed=-1, options=Options(device="cpu", tracking_uri=store_uri))
    assert store.client.search_experiments(filter_string="name = 'digits'") == []


def test_synthetic_noise_on_labels_with_known_errors_is_refused(tmp_path):
    images = np.zeros((8, 8, 8, 1), np.uint8)
    labels = np.arange(8) % 2
    names = np.array(["a", "b"])
    arrays = dict(train_images=images, test_images=images, test_labels=labels, class_names=names)
    np.savez(tmp_path / "a.npz", train_labels=labels, train_clean_labels=1 - labels, **arrays)
    with pytest.raises(BadInput, match="brings wrong labels of its own"):
        prepare(spec_of(data={"name": "npz", "path": str(tmp_path / "a.npz")}), 0, "cpu", "data")


def test_divergence_is_a_failed_run_with_epoch_and_hint(store_uri, store):
    spec = spec_of(
        method={"name": "standard", "training": {"batch_size": 16, "schedule": {"name": "constant", "lr": 1e30}}}
    )
    with pytest.raises(
        RunFailed, match=r"in epoch 1 the loss of \d+ of 100 samples is not finite: lower the learning rate"
    ):
        nlt.launch(spec, options=Options(device="cpu", tracking_uri=store_uri))
    experiment = store.client.get_experiment_by_name("digits")
    run = store.client.search_runs([experiment.experiment_id])[0]
    assert run.info.status == "FAILED"
    assert "not finite" in run.data.tags["nlt.stopped"]


def test_input_that_shows_itself_as_bad_in_a_run_ends_it_for_good(store_uri, store, monkeypatch):
    """Else each later `nlt resume` would go on with it, to fail again."""

    def unusable(*_):
        raise BadInput("a feature: mend it")

    monkeypatch.setattr(nlt.run.Run, "label_errors", unusable)
    method = {"name": "cleaned", "backbone": {"name": "pixels"}, "training": {"epochs": 1}}
    with pytest.raises(BadInput, match="a feature: mend it"):
        nlt.launch(spec_of(method=method), options=Options(device="cpu", tracking_uri=store_uri))
    assert unfinished_runs(store) == []


def test_weights_that_are_gone_for_a_while_cost_no_run_that_has_begun(store_uri, store, monkeypatch):
    """They may come back; only a run without an epoch has nothing to lose."""

    def gone(*_):
        raise BadInput("the weights are gone: put them back")

    options, method = Options(device="cpu", tracking_uri=store_uri), {"name": "standard", "training": {"epochs": 3}}

    def after(epoch):
        if epoch.t == 2:
            monkeypatch.setattr(nlt.run.Run, "learner", gone)
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        nlt.launch(spec_of(method=method), options=options, listener=Listener(on_epoch=after))
    for _ in range(2):
        (unfinished,) = unfinished_runs(store)
        with pytest.raises(BadInput, match="put them back"):
            resume(unfinished, options=options)
    monkeypatch.undo()
    assert len(resume(unfinished, options=options).epochs) == 3


def launch_in_background(store_uri: str, tmp_path: Path, **changes) -> subprocess.Popen:
    spec = tmp_path / "long.json"
    spec.write_text(json.dumps(tiny(**changes)))
    command = [
        sys.executable,
        "-c",
        "from nlt.cli import main; main()",
        "launch",
        str(spec),
        "--tracking-uri",
        store_uri,
    ]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ---- the store ----


@pytest.mark.slow
def test_two_launches_at_once_on_a_fresh_store(tmp_path):
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    short = {"name": "standard", "training": {"epochs": 1}}
    processes = [launch_in_background(uri, tmp_path, method=short) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err + out
    store = open_store(uri)
    experiment = store.client.get_experiment_by_name("digits")
    assert [r.info.status for r in store.client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 2
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_embedded_store_lies_under_mlruns_of_the_current_folder(tmp_path, monkeypatch, template_store):
    import shutil

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template_store, tmp_path / "mlruns")
    result = nlt.launch(spec_of(method={"name": "standard", "training": {"epochs": 1}}), options=Options(device="cpu"))
    run = open_store().client.get_run(result.run_id)
    assert Path(run.info.artifact_uri).is_relative_to(tmp_path / "mlruns" / "artifacts")
    assert {p.name for p in tmp_path.iterdir()} == {"mlruns"}


def test_tracking_uri_from_the_environment(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    assert open_store().uri == store_uri


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self/ns/user").exists(), reason="needs a store that is unwritable"
)
@pytest.mark.parametrize("uri", ["sqlite:////proc/nlt/mlflow.db", "sqlite:///", "file:///tmp/x", "/tmp/x", "sqlite:////dev/null"])  # fmt: skip
def test_unusable_stores(uri):
    with pytest.raises(BadInput, match="tracking URI|cannot be written"):
        open_store(uri)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"these are my notes" * 1000)
    with pytest.raises(BadInput, match="cannot be written"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == b"these are my notes" * 1000


def test_a_server_that_does_not_answer_is_noticed_at_once_and_no_password_is_shown():
    began = time.monotonic()
    with pytest.raises(BadInput, match="does not answer") as caught:
        open_store("http://user:secret@127.0.0.1:9")
    assert time.monotonic() - began < 10
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://[::1", "is no address"),
        ("http://user:hunter2@[::1", "is no address"),
        ("http://127.0.0.1:port", "is no address"),
        ("http://127.0.0.1:1/a b\x7f", "is no address"),
        ("http://user:hunter2/x@127.0.0.1:1", "\\*\\*\\*@127.0.0.1:1 does not answer"),
        ("http://127.0.0.1:1/?password=hunter2", "password=\\*\\*\\* does not answer"),
        ("user:hunter2@127.0.0.1", "keeps no runs there"),
        ("sqlite://user:hunter2@127.0.0.1/x", "name a file"),
        ("sqlite:///x.db?mode=ro", "name a file, without a question mark"),
        ("sqlite:///" + "a" * 300, "(?i)name too long"),
        ("sqlite:////proc/x.db", "the MLflow store /proc/x.db cannot be written"),
    ],
)
def test_a_tracking_uri_that_will_not_do_is_refused_and_no_password_is_shown(uri, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


def test_the_password_for_a_server_is_not_looked_up_as_a_name(monkeypatch):
    import socket

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: asked.append(host) or [])
    with pytest.raises(BadInput):
        open_store("http://user:secret@127.0.0.1:9")
    assert asked == ["127.0.0.1"]


def test_a_database_that_does_not_answer_is_noticed_at_once():
    """MLflow alone would try for 102 seconds. Where psycopg is not installed, the driver is what is missing."""
    began = time.monotonic()
    with pytest.raises(BadInput, match=r"postgresql://\*\*\*@127.0.0.1:1/x: cannot be used"):
        open_store("postgresql://user:secret@127.0.0.1:1/x")
    assert time.monotonic() - began < 10


def test_single_images_that_batch_norm_cannot_take_are_refused_before_the_run():
    """8 x 8 digits are one pixel after ResNet-18; cnn9 keeps 2 x 2."""
    method = {"name": "standard", "training": {"epochs": 1, "batch_size": 1}}
    with pytest.raises(BadInput, match="method.training.batch_size: batch norm cannot take single images of 8 x 8"):
        prepare(spec_of(method=method, model={"name": "resnet18"}), 0, "cpu", "data")
    prepare(spec_of(method=method), 0, "cpu", "data")


def test_a_data_root_of_an_unknown_user_is_a_folder_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(prepare(spec_of(), 0, "cpu", "~nobody-here/x").train) == 100


def test_mlflow_telemetry_is_off():
    code = "import nlt.tracking, os; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "true"


def test_a_run_whose_data_is_there_opens_no_connection(store_uri, monkeypatch):
    """The test runs with every way out of the process closed."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    nlt.launch(
        spec_of(method={"name": "standard", "training": {"epochs": 1}}),
        options=Options(device="cpu", tracking_uri=store_uri),
    )


def test_a_transition_matrix_of_many_classes_fits_into_a_param():
    T = [[0.9 if i == j else 0.1 / 9 for j in range(10)] for i in range(10)]
    spec = spec_of(noise={"name": "matrix", "rows": T}, data={"name": "digits", "limit": 100})
    prepared = prepare(spec, 0, "cpu", "data")
    assert max(map(len, params(spec, prepared).values())) <= 500
    assert str(spec.noise) == "matrix"


def test_a_run_with_outside_weights_says_so():
    plain, method = spec_of(), spec_of(method={"name": "cleaned", "backbone": {"name": "lite0"}})
    model = spec_of(model={"name": "timm", "image_size": 32}, method={"name": "standard"})
    assert plain.outside_weights() == ""
    assert method.outside_weights() == model.outside_weights() == "ImageNet-1k (timm tf_efficientnet_lite0)"
