"""docker/compose.yaml: what it promises, and its services started as it says, without Docker.

The command line and the environment of the server are read from the file, so that what is tested is what it runs; only
addresses and folders are others.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
import yaml
from click.testing import CliRunner
from conftest import REPO, tiny
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from servers import POSTGRES, MlflowServer, Postgres

from nlt.cli import main
from nlt.tracking import experiment_id, open_store
from nlt.view import TAG, comparison_view

DOCKER = REPO / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SECRET = re.compile("PASSWORD|SECRET|KEY|TOKEN")
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")

AWKWARD = "/@%:$\"'\\ #?&=+"  # whatever ends, escapes or divides something in a URI, a shell or a file of settings
GIVEN = {
    "POSTGRES_PASSWORD": f"database{AWKWARD}",
    "MLFLOW_AUTH_ADMIN_PASSWORD": f"administrator{AWKWARD}",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": f"signature{AWKWARD}",
    "NLT_HOST": "mlflow.example.org:8443",
}
PASSWORDS = {"alice": f"alice's {AWKWARD}", "bob": f"bob's own {AWKWARD}"}

TWO = [str(REPO / "experiments" / "quickstart" / f"{name}.json") for name in ("base", "o2u")]
RATES = ("--set", "noise.rate=0.2,0.6", "--device", "cpu", "--jobs", "2")


def filled_in(text: str, given: dict[str, str]) -> str:
    """Do what Compose does to `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        assert name in given or how == ":-", f"{name} has to be set: {rest}"
        return given.get(name) or rest or ""

    return VARIABLE.sub(value, text)


# ---- the file ----


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_stands_in_the_file(service):
    for name, value in SERVICES[service]["environment"].items():
        if SECRET.search(name):
            assert VARIABLE.fullmatch(value), f"{service}: {name}"
    assert "://" not in VARIABLE.sub("", str(SERVICES[service].get("command", ""))), "an address shows in `ps`"


def test_the_server_listens_on_this_machine_only_unless_told_otherwise_and_the_database_nowhere():
    published = {name: filled_in(port, {}) for name, s in SERVICES.items() for port in s.get("ports", [])}
    assert published == {"mlflow": "127.0.0.1:5000:5000"}
    assert filled_in(SERVICES["mlflow"]["ports"][0], {"NLT_BIND": "0.0.0.0", "NLT_PORT": "80"}) == "0.0.0.0:80:5000"
    with_database = [name for name, service in SERVICES.items() if "database" in service.get("networks", [])]
    assert with_database == ["db", "mlflow"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_locked_down_and_one_that_stays_has_a_health_check(service):
    made = SERVICES[service]
    assert made["read_only"] and made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert made.get("user") == "postgres" or made["image"] == "nlt"  # which is not root by itself
    assert ("healthcheck" in made) == ("restart" in made) == (made.get("profiles") != ["run"])


def test_a_service_waits_for_what_it_needs_and_every_volume_is_a_folder_of_the_image_or_a_file_here():
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(needed == {"condition": "service_healthy"} for needed in service.get("depends_on", {}).values())
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert source in COMPOSE["volumes"] or (DOCKER / source).is_file(), volume
            # Docker makes a folder that is not in the image as root, and then nlt cannot write there.
            if service["image"] == "nlt" and source in COMPOSE["volumes"]:
                assert re.search(
                    rf"install -d -o nlt -g nlt -m 1777 .*{target}\b", (DOCKER / "Dockerfile").read_text()
                ), target


def test_gpus_are_handed_to_the_runner_and_left_out_for_runner_cpu():
    gpus = SERVICES["runner"].pop("deploy")
    try:
        assert gpus["resources"]["reservations"]["devices"] == [
            {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        ]
        assert SERVICES["runner"] == SERVICES["runner-cpu"]
    finally:
        SERVICES["runner"]["deploy"] = gpus


def test_the_example_names_every_variable_and_holds_no_secret():
    known = {found[0]: found[1] for found in VARIABLE.findall((DOCKER / "compose.yaml").read_text())}
    example = (DOCKER / ".env.example").read_text()
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) == set(known)
    required = {name for name, how in known.items() if how == ":?"}
    assert set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)) == required
    (loop,) = re.findall(r"for name in ([A-Z_ ]+);", example)
    assert set(loop.split()) == required
    secrets = {name for name in known if SECRET.search(name)}
    assert not re.search(rf"^#?({'|'.join(secrets)})=.+", example, re.MULTILINE)


def test_the_command_in_the_example_makes_a_file_that_only_its_owner_may_read(tmp_path):
    text = "\n".join(line.removeprefix("#") for line in (DOCKER / ".env.example").read_text().splitlines())
    command = text[text.index("(umask") : text.index("> .env)") + len("> .env)")]
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    made = (tmp_path / ".env").read_text()
    assert re.fullmatch(r"(?:[A-Z_]+='[0-9a-f]{64}'\n){3}", made)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_neither_git_nor_the_image_takes_the_file_with_the_secrets(tmp_path):
    ignored = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=REPO, capture_output=True, text=True)
    assert ignored.stdout == "docker/.env\n"
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert not [line for line in lines if line.startswith("!docker") and line != "!docker/constraints.txt"]


# ---- a server that refuses ----


def handler(answers: dict[str, tuple[int, str]]) -> type[BaseHTTPRequestHandler]:
    """Return what answers as told, by a part of the path; everything that is not told is an empty answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = next((a for path, a in answers.items() if path in self.path), (200, "{}"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts servers that answer as told, and says where."""
    started = []

    def start(answers: dict[str, tuple[int, str]]) -> str:
        server = HTTPServer(("127.0.0.1", 0), handler(answers))
        Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://somebody:secret@127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


EXPERIMENT = {"experiment": {"experiment_id": "1", "name": "digits", "lifecycle_stage": "active", "tags": []}}


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            {"experiments/search": (401, "You are not authenticated. Please see https://www.mlflow.org")},
            "does not accept this user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to",
        ),
        (
            {"experiments/search": (403, "Invalid Host header - possible DNS rebinding attack detected")},
            "does not answer to that host name: its administrator has to name it in `mlflow server --allowed-hosts`",
        ),
        ({"experiments/search": (403, "Permission denied")}, "does not let you read it: ask its administrator"),
        (
            {"experiments/get-by-name": (200, json.dumps(EXPERIMENT)), "set-experiment-tag": (403, "Permission denied")},
            "does not let you add runs to the experiment 'digits': ask its owner or the administrator for the "
            "permission EDIT, or name another experiment in the spec's `experiment`.",
        ),
        (
            {"experiments/get-by-name": (403, "Permission denied")},
            "does not let you add runs to the experiment 'digits'",
        ),
    ],
    ids=["unknown", "host", "nothing", "reader", "denied"],
)  # fmt: skip
def test_a_server_that_refuses_gives_one_sentence_at_once_and_nothing_is_trained(answering, answers, sentence, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("spec.json").write_text(json.dumps(tiny()))
    uri = answering(answers)
    done = CliRunner().invoke(main, ["launch", "spec.json", "--rerun", "--device", "cpu", "--tracking-uri", uri])
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.output
    assert not (tmp_path / "mlruns" / "runs").exists()


def test_of_two_runs_that_set_the_view_of_an_experiment_at_once_neither_waits(store, monkeypatch):
    set_tag = store.client.set_experiment_tag

    def refuse_the_second(*args: str) -> None:
        set_tag(*args)  # the other run's
        raise MlflowException("BAD_REQUEST: duplicate key value violates unique constraint")

    monkeypatch.setattr(store.client, "set_experiment_tag", refuse_the_second)
    made = experiment_id(store, "digits")
    assert store.client.get_experiment(made).tags[TAG] == comparison_view()


def test_a_certificate_that_is_not_trusted_is_named_and_one_that_is_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "ca.pem",
        *subject,
    ]
    subprocess.run(make, check=True, capture_output=True)
    server = HTTPServer(("127.0.0.1", 0), handler({}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("ca.pem", "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://localhost:{server.server_port}")
        done = CliRunner().invoke(main, ["sync"])
        assert done.exit_code == 2
        assert (
            "a certificate that is not trusted: name the file of its authority's in MLFLOW_TRACKING_SERV" in done.output
        )
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "ca.pem"))
        assert CliRunner().invoke(main, ["sync"]).output == "nothing to deliver\n"
    finally:
        server.shutdown()
        server.server_close()


# ---- the services ----


class TeamServer(MlflowServer):
    """The service `mlflow` of compose.yaml on this machine."""

    def __init__(self, folder: Path, postgres: Postgres, database: str = "mlflow", **given: str):
        super().__init__("", folder)
        self.service, self.given = SERVICES["mlflow"], GIVEN | given
        self.place = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGDATABASE": database}
        self.place["MLFLOW_AUTH_CONFIG_PATH"] = str(DOCKER / "basic_auth.ini")
        self.artifacts = folder / "artifacts"

    def command(self) -> list[str]:
        here = {"0.0.0.0": "127.0.0.1", "5000": str(self.port), "/work/artifacts": str(self.artifacts)}
        words = self.service["command"].split()
        assert self.service["entrypoint"] == ["mlflow"]
        assert set(here) <= set(words)
        return [here.get(word, word) for word in words]

    def environment(self) -> dict[str, str]:
        asked = {name: filled_in(value, self.given) for name, value in self.service["environment"].items()}
        assert set(self.place) - set(asked) == {"PGPORT"}
        return asked | self.place | {"MLFLOW_DISABLE_TELEMETRY": "true"}  # as in the image

    def client(self, user: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
        come_as(user, monkeypatch)
        return MlflowClient(tracking_uri=self.uri)

    def asked(self, path: str, user: str = "", **more: object) -> int:
        """Return the status of the answer to a request."""
        password = PASSWORDS.get(user, GIVEN["MLFLOW_AUTH_ADMIN_PASSWORD"])
        auth = (user.encode(), password.encode()) if user else None
        method = "POST" if "json" in more else "GET"
        return requests.request(method, self.uri + path, auth=auth, timeout=60, **more).status_code


def come_as(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[user])


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """The service `db`: what its image makes of POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB."""
    if not POSTGRES:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    asked = {name: filled_in(value, GIVEN) for name, value in SERVICES["db"]["environment"].items()}
    cluster = Postgres(asked["POSTGRES_USER"], asked["POSTGRES_PASSWORD"])
    try:
        cluster.start()
        for name in (asked["POSTGRES_DB"], "other", "restored"):
            tool(cluster, "createdb", name)
        yield cluster
    finally:
        cluster.close()


def tool(cluster: Postgres, program: str, *args: str, user: str = "mlflow") -> None:
    place = {"PGHOST": "127.0.0.1", "PGPORT": str(cluster.port), "PGUSER": user}
    place["PGPASSWORD"] = GIVEN["POSTGRES_PASSWORD"]
    subprocess.run([f"{POSTGRES[-1]}/{program}", *args], env=os.environ | place, check=True)


@pytest.fixture(scope="module")
def team(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    """The running server with two users."""
    server = TeamServer(tmp_path_factory.mktemp("team"), database)
    try:
        server.start()
        for user, password in PASSWORDS.items():
            made = {"username": user, "password": password}
            assert server.asked("/api/2.0/mlflow/users/create", "admin", json=made) == 200
        yield server
    finally:
        server.kill()


def command(*args: str, cwd: Path, user: str = "", uri: str = "") -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if user:
        env |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": user}
        env["MLFLOW_TRACKING_PASSWORD"] = PASSWORDS[user]
    out = (cwd / "output").open("a")  # a file: it is read while the command runs
    return subprocess.Popen(
        [sys.executable, "-m", "nlt.cli", *args], cwd=cwd, env=env, stdout=out, stderr=out, text=True
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, template_store: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The final metrics of half of the sweep, the runs of seed 0, in the embedded store: name and seed -> metrics."""
    place = tmp_path_factory.mktemp("local")
    shutil.copytree(template_store, place / "mlruns")
    assert command("launch", *TWO, *RATES, cwd=place).wait(timeout=3000) == 0, (place / "output").read_text()
    return finals(open_store(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}").client)


def trained(client: MlflowClient) -> list:
    """Return the runs of the quickstart, without the one that sums them up."""
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    return [run for run in client.search_runs([experiment]) if "nlt.seed" in run.data.tags]


def finals(client: MlflowClient) -> dict[tuple[str, str], dict[str, float]]:
    return {
        (run.info.run_name, run.data.tags["nlt.seed"]): {
            name: value
            for name, value in run.data.metrics.items()
            if name.startswith("final/") and name != "final/train_seconds"
        }
        for run in trained(client)
    }


@pytest.fixture(scope="module")
def sweep(team: TeamServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which eight runs were launched by alice, while the server was killed and came back."""
    place = tmp_path_factory.mktemp("sweep")
    seeds = ("--seed", "0", "--seed", "1")
    process = command("launch", *TWO, *RATES, *seeds, cwd=place, user="alice", uri=team.uri)
    try:
        while (place / "output").read_text().count("\nfinished ") < 2:
            assert process.poll() is None, (place / "output").read_text()
            time.sleep(0.1)
        team.restart()
        assert process.wait(timeout=3000) == 0, (place / "output").read_text()
    finally:
        process.kill()
        process.wait()
    # A run that ends while the server is away waits for it 20 s and leaves the rest to this.
    assert command("sync", cwd=place, user="alice", uri=team.uri).wait(timeout=300) == 0
    return place


slow = pytest.mark.slow


@slow
def test_the_default_password_of_mlflow_is_refused(database, tmp_path):
    server = TeamServer(tmp_path, database, "other", MLFLOW_AUTH_ADMIN_PASSWORD="password1234")
    try:
        with pytest.raises(RuntimeError, match="Refusing to use the insecure default password"):
            server.start()
    finally:
        server.kill()


@slow
def test_strangers_get_nothing_but_the_health_of_the_server(team):
    assert team.asked("/health") == 200
    for path in ("/", "/signup", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/users/list"):
        assert team.asked(path) == 401, path
        assert team.asked(path, "mallory") == 401, path
    for path in ("/api/2.0/mlflow-artifacts/artifacts/1/x", "/get-artifact?path=x&run_uuid=y"):
        assert team.asked(path) == 401, path
    made = {"username": "eve", "password": "a password of eve's"}
    assert team.asked("/api/2.0/mlflow/users/create", json=made) == 401
    assert team.asked("/api/2.0/mlflow/users/create", "alice", json=made) == 403


@slow
def test_the_server_answers_to_its_own_names_only_and_to_its_own_pages(team):
    def answer(host: str, origin: str) -> int:
        headers = {"Host": host, "Origin": origin}
        return team.asked("/api/2.0/mlflow/experiments/search", "alice", json={"max_results": 1}, headers=headers)

    ours, theirs = GIVEN["NLT_HOST"], "elsewhere.example.org"
    assert [answer(host, f"https://{ours}") for host in (ours, "mlflow:5000", "localhost:81", theirs)] == [
        200, 200, 200, 403,
    ]  # fmt: skip
    assert [answer(ours, f"https://{name}") for name in (ours, "localhost:81", theirs)] == [200, 200, 403]


@slow
def test_the_list_of_processes_shows_no_password_and_no_address_of_the_database(team):
    assert team._process is not None
    seen = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == team._process.pid:
                seen.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended
            continue
    assert len(seen) >= 4  # mlflow, uvicorn, two workers
    for secret in (*GIVEN.values(), *PASSWORDS.values(), "postgresql", "database"):
        assert not [line for line in seen if secret in line]


@slow
@pytest.mark.parametrize("password", ["", "a wrong password"])
def test_nlt_with_a_wrong_password_is_refused_and_trains_nothing(team, password, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where ~/.mlflow/credentials would be
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice" if password else "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    for words in (["launch", *TWO, *RATES], ["compare"], ["sync"]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2
        assert re.fullmatch(
            f"Error: the MLflow server {team.uri} does not accept this user and password: set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD to those its administrator gave you.\n", done.output
        )  # fmt: skip
    assert not (tmp_path / "mlruns").exists()
    monkeypatch.undo()
    experiments = team.client("alice", monkeypatch).search_experiments()
    assert {experiment.name for experiment in experiments} <= {"Default", "quickstart"}


@slow
def test_credentials_may_lie_in_mlflows_own_file(team, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    password = PASSWORDS["alice"].replace("%", "%%")  # of Python's configparser
    text = f"[mlflow]\nmlflow_tracking_username = alice\nmlflow_tracking_password = {password}\n"
    (tmp_path / ".mlflow" / "credentials").write_text(text)
    assert CliRunner().invoke(main, ["sync", "--tracking-uri", team.uri]).output == "nothing to deliver\n"


@slow
def test_the_sweep_is_on_the_server_whole_with_the_numbers_of_the_embedded_store(team, sweep, local, monkeypatch, tmp_path):  # fmt: skip
    client = team.client("alice", monkeypatch)
    runs = trained(client)
    assert [run.info.status for run in runs] == ["FINISHED"] * 8
    got = finals(client)
    assert len(got) == 8 and len(local) == 4
    assert {run: got[run] for run in local} == local
    assert list((sweep / "mlruns" / "runs").iterdir()) == []  # all is delivered
    for run in runs:
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        there = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"spec.json", "losses.npz", "weights.safetensors", "images"} <= there
        assert ("detections.csv" in there) == (run.data.tags["nlt.method"] == "o2u")
        assert client.list_artifacts(run.info.run_id, "images")
    kept = {path.name for path in team.artifacts.rglob("*") if path.is_file()}
    assert {"weights.safetensors", "detections.csv"} <= kept
    path = Path(client.download_artifacts(runs[0].info.run_id, "weights.safetensors", str(tmp_path)))
    (same,) = team.artifacts.glob(f"*/{runs[0].info.run_id}/artifacts/weights.safetensors")
    assert path.read_bytes() == same.read_bytes()


@slow
def test_no_credential_is_left_in_files_output_logs_params_or_tags(team, sweep, monkeypatch):
    words = [f"{secret}" for secret in (*GIVEN.values(), *PASSWORDS.values()) if secret != GIVEN["NLT_HOST"]]
    words += [json.dumps(word)[1:-1] for word in words] + ["alice:", "YWxpY2U6"]  # as JSON; as the header has it
    files = [path for place in (sweep, team.folder) for path in place.rglob("*") if path.is_file()]
    assert len(files) > 8 * 5
    for path in files:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path
    for run in trained(team.client("alice", monkeypatch)):
        told = str(run.to_dictionary())
        assert not [word for word in words if word in told]


@slow
def test_others_read_and_add_to_the_experiment_but_delete_nothing_in_it(team, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = team.client("bob", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    shown = CliRunner().invoke(main, ["compare", "quickstart"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("(2)") >= 6  # 2 methods x 2 rates, and the precision of the one that detects
    page = tmp_path / "compared.html"
    shown = CliRunner().invoke(main, ["compare", "quickstart", "--format", "html", "--output", str(page)])
    assert shown.exit_code == 0, shown.output
    drawn = set(re.findall(r'aria-label="([a-z]+)', page.read_text()))
    assert {"accuracy", "detection", "losses"} <= drawn  # of what runs have left on the server
    run = client.create_run(client.get_experiment_by_name("quickstart").experiment_id)
    client.set_terminated(run.info.run_id)
    for what in (client.delete_run, client.delete_experiment):
        target = trained(client)[0].info
        with pytest.raises(Exception, match="Permission denied"):
            what(target.run_id if what == client.delete_run else target.experiment_id)


@slow
def test_a_backup_is_the_team_s_store_again_and_readers_may_only_read(team, sweep, database, tmp_path, monkeypatch):
    """The dump and the archive of docs/deploy.md, and its other `default_permission`."""
    tool(database, "pg_dump", "--format=custom", f"--file={tmp_path / 'nlt.dump'}", "mlflow")
    with tarfile.open(tmp_path / "artifacts.tar", "w") as archive:
        archive.add(team.artifacts, "artifacts")
    tool(
        database, "pg_restore", "--clean", "--if-exists", "--exit-on-error", "--single-transaction", "--dbname=restored",
        str(tmp_path / "nlt.dump"),
    )  # fmt: skip
    server = TeamServer(tmp_path / "restored", database, "restored")
    with tarfile.open(tmp_path / "artifacts.tar") as archive:
        archive.extractall(server.folder, filter="data")
    settings = (DOCKER / "basic_auth.ini").read_text()
    assert settings.count("default_permission = EDIT\n") == 1
    (tmp_path / "basic_auth.ini").write_text(settings.replace("= EDIT\n", "= READ\n"))
    server.place["MLFLOW_AUTH_CONFIG_PATH"] = str(tmp_path / "basic_auth.ini")
    before = finals(team.client("alice", monkeypatch))
    try:
        server.start()
        client = server.client("bob", monkeypatch)
        assert finals(client) == before
        run_id = trained(client)[0].info.run_id
        assert Path(client.download_artifacts(run_id, "losses.npz", str(tmp_path))).stat().st_size > 1000
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        shown = CliRunner().invoke(main, ["compare", "quickstart"])
        assert shown.exit_code == 0, shown.output
        done = CliRunner().invoke(main, ["launch", TWO[0], "--seed", "7", "--device", "cpu"])
        assert done.exit_code == 2
        assert done.stderr.count("\n") == 1
        assert "does not let you add runs to the experiment 'quickstart': ask its owner" in done.stderr
        assert not (tmp_path / "mlruns" / "runs").exists()
        grant = {"username": "bob", "resource_type": "experiment", "permission": "EDIT"}
        grant["resource_id"] = client.get_experiment_by_name("quickstart").experiment_id
        assert server.asked("/api/3.0/mlflow/users/permissions/grant", "alice", json=grant) == 200
        done = CliRunner().invoke(main, ["launch", TWO[0], "--seed", "7", "--device", "cpu"])
        assert done.exit_code == 0, done.output
    finally:
        server.kill()
