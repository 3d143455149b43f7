"""Commands that show what runs have found: compare, ui."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click

from nlt.cli.options import FILE, friendly, main, tracking_option
from nlt.settings import BadInput
from nlt.terminal import Bars, as_text, console


@main.command()
@click.argument("experiment", required=False)
@click.option("--sweep", metavar="NAME", help="Only runs of this sweep (the tag nlt.sweep).")
@click.option(
    "tags", "--tag", metavar="KEY=VALUE", multiple=True, help="Only runs with this tag; may be given many times."
)
@click.option(
    "--baseline", metavar="NAME",
    help="Run name or method that the others are compared with; by default the standard method with CE.",
)  # fmt: skip
@click.option(
    "kind", "--format", type=click.Choice(["table", "md", "csv", "json", "html"]), default="table", show_default=True,
    help="csv and json: unrounded, a row per method and noise; html: one page with all figures.",
)  # fmt: skip
@click.option("--output", type=FILE, metavar="FILE", help="Write there instead of to the terminal.")
@click.option("--figures", type=FILE, metavar="FOLDER", help="Also write each figure there, as PNG and PDF.")
@tracking_option
@friendly
def compare(
    experiment: str | None,
    sweep: str | None,
    tags: tuple[str, ...],
    baseline: str | None,
    kind: str,
    output: Path | None,
    figures: Path | None,
    tracking_uri: str | None,
) -> None:
    """Compare methods over seeds: accuracies, wrong labels found, time, paired differences to a baseline.

    EXPERIMENT is an MLflow experiment (by default a spec's runs are in the one named like its data set).

    \b
    nlt compare
    nlt compare quickstart --baseline base
    nlt compare quickstart --format html --output report.html --figures figures
    """
    pairs = [tag.partition("=") for tag in tags]
    if wrong := [tag for tag, (key, equals, _) in zip(tags, pairs, strict=True) if not (key and equals)]:
        raise BadInput(f"--tag {wrong[0]}: write it as KEY=VALUE, e.g. --tag nlt.profile=corrected.")
    from nlt.report import as_csv, as_json, markdown, tables
    from nlt.report import compare as collect
    from nlt.tracking import open_store

    store = open_store(tracking_uri)
    wanted = {key: value for key, _, value in pairs}
    found = collect(store, experiment, sweep=sweep, tags=wanted, baseline=baseline)
    drawn = []
    if kind == "html" or figures:
        from nlt.report.summary import figures_of

        with Bars() as progress:
            drawn = [figures_of(store, comparison, progress) for comparison in found]
    if kind == "html":
        from nlt.report.html import page

        with Bars() as progress:
            text = page(list(zip(found, drawn, strict=True)), progress)
    elif kind == "table":
        shown = [table for comparison in found for table in tables(comparison)]
        if output is None:
            console().print(*shown, sep="\n")
        text = as_text(shown)
    else:
        text = {"md": markdown, "csv": as_csv, "json": as_json}[kind](found)
    if output is not None:
        _write(output, text.encode())
    elif kind != "table":
        click.echo(text, nl=False)
    if figures:
        from nlt.report.plots import file_names, pdf, png

        folders = file_names([comparison.experiment for comparison in found])
        for name, group in zip(folders, drawn, strict=True):
            folder = figures / name if len(found) > 1 else figures
            for drawing in group:
                _write(folder / f"{drawing.name}.png", png(drawing))
                _write(folder / f"{drawing.name}.pdf", pdf(drawing))


def _write(path: Path, content: bytes) -> None:
    """Write a file that the user has named, whole or not at all."""
    from nlt.checkpoint import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout, a pipe: written into
            path.write_bytes(content)
        else:
            write_whole(path, content)
    except (OSError, ValueError) as error:  # ValueError: a name that is none, as /
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be written ({reason}): name another file.") from None


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on 127.0.0.1.")
@tracking_option
@friendly
def ui(port: int, tracking_uri: str | None) -> None:
    """Serve the MLflow UI on 127.0.0.1 and print the links of the comparison views.

    \b
    nlt ui
    nlt ui --port 5001
    """
    from nlt.tracking import open_store, without_credentials
    from nlt.view import TAG, link

    store = open_store(tracking_uri)
    base = f"http://127.0.0.1:{port}"
    if store.uri.startswith("http"):
        base = without_credentials(store.uri)  # the server shows its own UI, and the browser asks for the password
    else:
        _check_port(port)  # before links to it are told
    experiments = [e for e in store.client.search_experiments() if TAG in e.tags]
    links = [f"{experiment.name}: {link(base, experiment.experiment_id)}" for experiment in experiments]
    told = "\n".join(links or [f"no runs yet; the UI is at {base}"])
    if store.uri.startswith("http"):
        click.echo(told)
        return
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--default-artifact-root", str(store.artifacts)]
    more = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job workers are for GenAI and cost 250 MB each
        "PYTHONWARNINGS": "ignore",  # of MLflow's own dependencies
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # not an argument: a database's password would show in the process list
        "MLFLOW_REGISTRY_STORE_URI": store.uri,  # the same by default, of which the server would tell
    }
    # A group of its own: MLflow starts further processes, and none may stay behind when this one is told to end.
    server = subprocess.Popen(command, env=os.environ | more, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if _is_up(port, server):  # a link that is opened earlier shows an error
            click.echo(f"{told}\npress Ctrl-C to stop")
        raise SystemExit(server.wait())
    except KeyboardInterrupt:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _is_up(port: int, server: "subprocess.Popen[bytes]") -> bool:
    """Wait until a server takes connections, and return whether it does; not if it has ended."""
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise BadInput(f"--port {port} is in use: choose another, e.g. --port {port % 65535 + 1}.") from None
