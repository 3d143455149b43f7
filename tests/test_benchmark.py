"""The benchmark's command and page: run once, gone on with, and its numbers by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPO

from nlt.reading import load
from nlt.tracking import Store

FOLDERS = sorted(path for path in (REPO / "experiments" / "benchmark").iterdir() if path.is_dir())
SMALL = {"data.limit": 120, "model.width": 0.125, "method.training.epochs": 2, "method.training.batch_size": 32}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPO / "docs"))
    import benchmark

    return benchmark


@pytest.fixture
def page(script: ModuleType) -> ModuleType:
    import benchmark_page

    return benchmark_page


@pytest.fixture
def small(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two of the benchmark's own files on digits, two epochs each."""
    folder = tmp_path / "files" / "digits"
    folder.mkdir(parents=True)
    for method in ("base", "coteaching_told"):
        spec = load(script.FILES / "digits" / f"{method}.json", tuple(f"{key}={value}" for key, value in SMALL.items()))
        (folder / f"{method}.json").write_text(json.dumps(spec.resolved()))
    monkeypatch.setattr(script, "FILES", folder.parent)
    return folder


# ---- the files ----


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_methods_of_a_data_set_differ_in_the_method_alone(script: ModuleType, folder: Path) -> None:
    specs = {file.stem: load(file) for file in folder.glob("*.json")}
    base = specs["base"]
    for name, spec in specs.items():
        for key in ("experiment", "data", "noise", "model", "optimizer", "precision", "evaluate"):
            assert getattr(spec, key) == getattr(base, key), (name, key)
        assert spec.augmentation == base.augmentation, name
        assert spec.steps() == base.steps(), name
        assert spec.data.val_fraction == 0.1
        rate = getattr(spec.method, "forget_rate", "estimate")
        assert (rate == "estimate") == (not name.endswith("_told")), name
        assert spec.outside_weights() == "" or "lite0" in name


@pytest.mark.parametrize("data", ["digits", "digits-augmented", "cifar4-reduced"])
def test_all_methods_of_a_data_set_learn_from_one_view(script: ModuleType, page: ModuleType, data: str) -> None:
    view = page.VIEWS[data]
    for cell in script.cells(script._arguments(["run", data])):
        has_strong = hasattr(cell.spec.method, "strong")
        learned = cell.spec.method.strong if has_strong else cell.spec.augmentation
        assert (learned and learned.model_dump()) == view, cell
        assert cell.spec.augmentation is None or not has_strong  # judged by the images as they are
        assert cell.spec.experiment == f"benchmark-{data}"


@pytest.mark.parametrize("data", ["digits", "digits-augmented", "cifar4-reduced", "cifar4", "cifar10"])
def test_every_method_has_every_row(script: ModuleType, data: str) -> None:
    arguments = script._arguments(["run", data, "--seeds", "0,3", "--human", "worst.npy"])
    found = list(script.cells(arguments))
    methods = len(list((script.FILES / script.FOLDERS[data]).glob("*.json")))
    assert len(found) == 2 * methods * (8 if data.startswith("digits") else 9)
    assert len({(cell.recipe, cell.seed) for cell in found}) == len(found)
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)  # a whole seed, then the next
    long_tailed = [cell.spec for cell in found if cell.row.startswith("imbalance")]
    assert {(spec.data.imbalance, spec.noise.rate) for spec in long_tailed} == {(10.0, 0.4)}
    assert {cell.spec.data.imbalance for cell in found if not cell.row.startswith("imbalance")} == {1.0}
    assert {cell.spec.data.name for cell in found} == {data.removesuffix("-augmented").removesuffix("-reduced")}


def test_a_recipe_does_not_depend_on_where_the_images_and_labels_lie(script: ModuleType) -> None:
    def recipes(*more: str) -> set[str]:
        return {cell.recipe for cell in script.cells(script._arguments(["run", "cifar10", *more]))}

    assert recipes("--human", "a.npy") == recipes("--human", "b.npy", "--data", '{"name": "npz", "path": "x.npz"}')
    [cell] = script.cells(script._arguments(["run", "cifar4", "--only", "base, imbalance*"]))
    here = script._here(cell, {"name": "npz", "path": "x.npz"}, lambda spec: 0.0)
    assert (here.spec.data.path, here.spec.data.val_fraction, here.spec.data.imbalance) == ("x.npz", 0.1, 10.0)
    assert here.recipe == cell.recipe


# ---- running ----


@pytest.mark.slow
def test_what_stands_in_the_results_or_in_mlflow_is_not_run_again(
    script: ModuleType, small: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, written = tmp_path / "results.jsonl", tmp_path / "page.md"
    call = ["run", "digits", "--only", "*, symmetric 60", "--results", str(results), "--page", str(written)]
    call += ["--tracking-uri", store.uri, "--device", "cpu"]
    script.main(call)
    base, told = map(json.loads, results.read_text().splitlines())
    assert (base["method"], told["method"], base["row"], base["seed"]) == ("base", "coteaching_told", "symmetric 60", 0)
    assert (base["told"], told["told"]) == (False, True)
    assert abs(told["wrong"] - 0.6) < 0.15  # of 108 labels
    run = store.client.get_run(told["run_id"])
    assert float(run.data.params["forget_rate"]) == pytest.approx(told["wrong"], abs=1e-4)
    assert base["images_seen"] == 2 * 108 and told["images_seen"] == 2 * base["images_seen"]
    assert 0 < told["average_precision"] < 1 and "auc" not in base
    text = written.read_text()
    assert f"| {100 * base['accuracy']:.1f} (1) |" in text.replace("**", "")

    def refused(*args: Any) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(script, "in_turn", refused)
    first = results.read_bytes()
    results.write_bytes(first + b'{"data": "digi')  # a crash
    script.main(call)
    assert (results.read_bytes(), written.read_text()) == (first, text)
    results.unlink()
    script.main(call)  # MLflow knows
    assert results.read_bytes() == first
    with pytest.raises(AssertionError, match="run again"):
        script.main([*call, "--seeds", "1"])


@pytest.mark.slow
def test_the_rule_that_chooses_goes_by_noisy_validation_and_stays_out_of_the_reported_runs(
    script: ModuleType, small: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "CHOICE_ROWS", ("symmetric 60",))
    monkeypatch.setattr(script, "CHOICE_SEEDS", (100, 101))
    call = ["choose", "digits", "base", "optimizer.weight_decay=0.0,0.001", "--device", "cpu"]
    script.main([*call, "--tracking-uri", store.uri])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("optimizer.weight_decay")]
    [experiment] = [e for e in store.client.search_experiments() if e.name.startswith("benchmark")]
    assert experiment.name == "benchmark-digits-choice"
    by_hand: dict[str, list[float]] = {"0.0": [], "0.001": []}
    for run in store.client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'"):
        if "nlt.seed" in run.data.tags:
            assert run.data.tags["nlt.seed"] in ("100", "101")
            by_hand[run.data.params["weight_decay"]].append(run.data.metrics["val/accuracy"])
    for line, (value, accuracies) in zip(told, by_hand.items(), strict=True):
        mean = f"{sum(accuracies) / 2:.4f}"
        assert line == f"optimizer.weight_decay={value}: {mean}  symmetric 60 {mean}" and len(accuracies) == 2


def test_an_option_that_fits_nothing_is_told(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no 'METHOD, ROW' is like that; methods are apl, base"):
        script.main(["run", "digits", "--only", "base, sym"])


# ---- the page ----


def line(method: str, row: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    own = {"recipe": "r", "told": False, "outside_weights": "", "epochs": "50", "commit": "c", "device": "cpu"}
    cost = {"seconds": 10.0, "images_seen": 1000.0, "threads": "1", "date": "2026-11-26 10:00"}
    about = {
        "data": "digits",
        "method": method,
        "row": row,
        "seed": seed,
        "accuracy": accuracy,
        "at_best_val": accuracy,
    }
    return own | cost | about | more


LINES = [
    line("base", "clean", 0, 0.95), line("base", "clean", 1, 0.97),
    line("base", "symmetric 60", 0, 0.50), line("base", "symmetric 60", 1, 0.60),
    line("elr", "clean", 0, 0.90, recipe="older"), line("elr", "clean", 2, 0.10, recipe="older"), line("elr", "clean", 0, 0.96), line("elr", "clean", 1, 0.98),
    line("elr", "symmetric 60", 0, 0.80, estimated_rate=0.55, wrong=0.6, auc=0.9, average_precision=1.0),
    line("elr", "symmetric 60", 1, 0.70, auc=1.0, average_precision=1.0),
    line("o2u_told", "symmetric 60", 0, 0.99, told=True, images_seen=2500.0),
    line("cleaned_lite0", "symmetric 60", 0, 0.995, outside_weights="ImageNet"),
]  # fmt: skip


def test_the_page_by_hand(page: ModuleType, tmp_path: Path) -> None:
    written = tmp_path / "benchmark.md"
    written.write_text(f"# Head\n\n{page.BEGIN}\nstale\n{page.END}\n\nTail.\n")
    page.write_page(written, LINES)
    text = written.read_text()
    assert text.startswith("# Head\n") and text.endswith("\n\nTail.\n") and "stale" not in text
    plain = [
        row.replace("](../experiments/benchmark/digits/", "(") for row in text.splitlines() if row.startswith("| [")
    ]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in plain]

    def of(name: str) -> list[list[str]]:
        return [row[1:] for row in rows if row[0].startswith(f"[{name}(")]

    # 0.50, 0.60: deviation 0.0707; differences 0.30 and 0.10: mean 0.2, deviation 0.1414, times 12.706 / sqrt(2).
    assert of("base")[0] == ["96.0 ± 1.4 (2)", "55.0 ± 7.1 (2)"]
    assert of("elr")[0] == ["**97.0 ± 1.4 (2)**", "**75.0 ± 7.1 (2)**"]  # told and outside weights are not ranked
    assert of("elr")[1] == ["+1.0 ± 0.0 (2)", "+20.0 ± 127.1 (2)"]
    assert of("o2u_told")[1] == ["", "+49.0 (1)"]
    assert ["1", "1", "1.0"] in of("elr") and ["2", "2", "2.0"] in of("base")
    assert ["0.950 / 1.000"] in of("elr") and ["", "55 / 60"] in of("elr")
    assert ["10", "2", "2.5", "50", ""] in of("o2u_told")
    order = [row[0].split("(")[0] for row in rows[:4]]
    assert order == ["[base", "[elr", "[o2u_told", "[cleaned_lite0"]
    assert "†" in plain[2] and "‡" in plain[3]
    assert ["as they are", "training 50 x 128, step 0.03 / 0.015 / 0.003"] in of("base")
    assert (tmp_path / "benchmark_digits.png").read_bytes().startswith(b"\x89PNG")
    assert "| CIFAR-10 | ssr | symmetric 20 | 96.7 |  | Feng et al. 2022, SSR+ |" in text


def test_cost_compares_like_with_like_by_hand(page: ModuleType) -> None:
    """Seconds of one device, images beside cross-entropy's of the same row and seed: rows differ in their images."""
    gpu = {"device": "cuda:0", "seconds": 20.0}
    lines = [
        line("base", "clean", 0, 0.9, images_seen=4000.0), line("base", "symmetric 60", 0, 0.9, images_seen=1000.0),
        line("elr", "symmetric 60", 0, 0.9, images_seen=2000.0), line("elr", "symmetric 60", 1, 0.9, images_seen=9e6, **gpu),
        line("sop", "clean", 0, 0.9, images_seen=4000.0), line("sop", "symmetric 60", 0, 0.9, images_seen=3000.0, **gpu),
        line("ssr", "clean", 1, 0.9, images_seen=9e6, **gpu),
    ]  # fmt: skip
    head, _, *body = page._cost(page.Results("digits", lines)).splitlines()
    assert head.startswith("| method | seconds (cpu) | 1,000 images | times cross-entropy's |")
    assert [[cell.strip() for cell in row.split("|")[2:5]] for row in body] == [
        ["10", "2", "1.0"],  # (4,000 + 1,000) / 2
        ["10", "2", "2.0"],  # not twice 1,000 over 2,500
        ["10", "4", "2.0"],  # (1 + 3) / 2
        ["", "", ""],
    ]


def test_a_mean_rank_over_fewer_rows_says_so(page: ModuleType) -> None:
    lines = [*LINES, line("apl", "clean", 0, 0.97)]
    places = page.Results("digits", lines).ranks()
    assert places == {
        "base": {"clean": 3, "symmetric 60": 2},
        "elr": {"clean": 1.5, "symmetric 60": 1},
        "apl": {"clean": 1.5},
    }
    text = "\n".join(page._sections(page.Results("digits", lines)))
    assert "| 1.5 (1) |" in text
    assert text.count("**97.0") == 2  # equal ones are both the best
    again = line("loo_consistency_batch128", "clean", 0, 0.99)  # another setting of one method has no place
    assert page.Results("digits", [*lines, again]).ranks() == places


def test_the_page_tells_views_batches_and_rates(page: ModuleType) -> None:
    def does(data: str, method: str) -> tuple[str, str]:
        return page._does(page.viewed(data, page.FILES / page.FOLDERS[data] / f"{method}.json", {}))

    ours = "warmup 25 x 64, constant 0.03; training 25 x 64, step 0.03 / 0.015 / 0.003"
    assert does("digits-augmented", "loo_consistency") == ("as they are; strong: crop 1, cutout 3", ours)
    assert does("digits", "loo_consistency") == ("as they are", ours)
    small = "training 50 x 64, step 0.03 / 0.015 / 0.003"
    assert does("digits-augmented", "base_batch64") == ("crop 1, cutout 3", small)
    assert does("cifar4-reduced-augmented", "base")[0] == "crop 4, flip, cutout 8"
    assert does("cifar10", "ssr")[0] == "crop 4, flip; strong: 2 operations, crop, flip, cutout"


def test_published_numbers_name_rows_and_data_that_there_are(page: ModuleType) -> None:
    for data, _, row, number, source in page.PUBLISHED:
        assert data in page.DATA and row in page.ROWS and 20 < number < 100 and source
