"""Commands that look at experiment files and at this machine: validate, schema, doctor, bench."""

import json
import os
from dataclasses import replace
from pathlib import Path

import click

from nlt.cli.options import (
    Number,
    data_root_option,
    device_option,
    friendly,
    main,
    set_option,
    specs_argument,
    tracking_option,
)
from nlt.settings import BadInput
from nlt.terminal import console


@main.command()
@specs_argument
@set_option
@friendly
def validate(specs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check experiment files without running them: keys, types and values; whether the data are there a launch checks.

    \b
    nlt validate experiments/*.json
    """
    from nlt.reading import load_all

    errors = []
    for path in specs:
        try:
            load_all(path, overrides)
        except BadInput as error:
            errors.append(str(error))
        else:
            click.echo(f"{click.format_filename(path)}: valid")
    if errors:
        raise BadInput(*errors)


@main.command()
@friendly
def schema() -> None:
    """Print the JSON Schema of experiment files.

    \b
    nlt schema > nlt/schema.json
    """
    from nlt.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.command()
@device_option
@data_root_option
@tracking_option
@friendly
def doctor(device: str, data_root: Path, tracking_uri: str | None) -> None:
    """Say what is usable here: versions, device, precision, data sets found, store.

    \b
    nlt doctor
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from nlt.hardware import find_device, find_precision
    from nlt.tracking import open_store, shown

    rows = [("nlt", version("nlt")), ("python", platform.python_version())]
    rows += [(name, version(name)) for name in ("torch", "torchvision")]
    try:
        rows.append(("mlflow", version("mlflow")))
    except PackageNotFoundError:
        rows.append(("mlflow (skinny)", f"{version('mlflow-skinny')}, without its UI"))
    found = find_device(device)
    named = torch.cuda.get_device_name(found) if found.type == "cuda" else f"{torch.get_num_threads()} threads"
    rows += [("device", f"{found} ({named})"), ("precision auto", find_precision("auto", found))]
    rows += [("data digits", "embedded in scikit-learn")]
    cifars = [
        ("cifar10, cifar4", "cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]),
        ("cifar100", "cifar-100-python", ["train", "test"]),
    ]
    for name, folder, files in cifars:
        where = Path(os.path.expanduser(data_root)).absolute() / folder
        there = all(os.path.isfile(where / file) for file in files)  # Path.is_file raises for a name too long
        rows.append((f"data {name}", str(where) if there else f"not in {where}; downloaded when first used"))
    ok = True
    try:
        store = open_store(tracking_uri)
        of_a_server = store.uri.startswith(("http", "databricks"))
        state = "writable" if of_a_server else "writable, schema current"  # else open_store had refused it
        rows.append(("store", f"{shown(store.uri)}, {state}"))
    except BadInput as error:
        ok = False
        rows.append(("store", str(error)))
    for name, text in rows:
        click.echo(f"{name:<22} {text}")
    if not ok:
        raise BadInput


@main.command()
@device_option
@click.option(
    "widths",
    "--width",
    type=Number(0, 8, min_open=True),
    multiple=True,
    help="Of cnn9; 0.25 and 1.",
)
@click.option(
    "--images",
    type=click.IntRange(32, 1_000_000),
    default=None,
    help="In an epoch; 5,120 on a CPU, 20,000 on a GPU.",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Of which medians are taken; by default 5.")
@click.option(
    "--compile", "compiled", type=click.Choice(["on", "off"]), default="off", show_default=True, help="torch.compile."
)
@click.option("--smoke", is_flag=True, help="Only see that it runs: tiny, its numbers mean nothing.")
@friendly
def bench(
    device: str, widths: tuple[float, ...], images: int | None, rounds: int | None, compiled: str, smoke: bool
) -> None:
    """Measure whole epochs beside the network's bare arithmetic and a conventional loop; print a table and JSON.

    Minutes to a quarter of an hour on a CPU. Nothing else should run meanwhile.

    \b
    nlt bench
    nlt bench --device cuda --width 1
    nlt bench --smoke
    """
    from nlt.bench import Size
    from nlt.bench import bench as measure
    from nlt.hardware import find_device

    gpu = find_device(device).type == "cuda"
    default = Size((0.25, 1.0), 20_000, 4_096, 5, 8_192) if gpu else Size((0.25, 1.0), 5_120, 512, 5, 2_048)
    if smoke and (widths or images or rounds):
        raise BadInput("--smoke has sizes of its own: leave --width, --images and --rounds out.")
    if smoke:
        default = Size((0.03, 0.05), 160, 32, 1, 64)
    size = replace(
        default,
        widths=widths or default.widths,
        images=images or default.images,
        rounds=rounds or default.rounds,
        compiled=compiled == "on",
    )
    measured = measure(device, size, lambda note: click.echo(note, err=True))
    console().print(measured.table())
    click.echo(json.dumps(measured.json()))
