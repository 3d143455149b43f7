"""The MLflow store: made where it is named, whole or not at all; what another MLflow has made is left as it is."""

import hashlib
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from click.testing import CliRunner
from conftest import tiny
from fuzzing import assert_one_sentence

from nlt.cli import main
from nlt.reading import check
from nlt.settings import BadInput
from nlt.tracking import experiment_id, open_store, store

OLDER = "b7e2c1a4d9f3"  # MLflow 3.16.1's


def inside(folder: Path) -> dict[str, str]:
    """Everything in a folder, with the contents of files, but what SQLite keeps beside a database in use."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, template_store: Path) -> None:
    """New stores are copies: MLflow's migrations take seconds."""
    monkeypatch.setattr(store, "_migrate", lambda part, artifacts: shutil.copy(template_store / "mlflow.db", part))


def refusal(uri: str) -> str:
    with pytest.raises(BadInput) as caught:
        open_store(uri)
    assert_one_sentence(str(caught.value))
    return str(caught.value)


# ---- made where it is named ----


@pytest.mark.parametrize("uri", ["sqlite:///{}/new/folder/m.db", "sqlite:///new/folder/m.db", "sqlite:///./new/../new/folder/m.db"])  # fmt: skip
def test_a_new_store_is_made_with_its_folders(tmp_path, monkeypatch, quick, uri):
    monkeypatch.chdir(tmp_path)
    opened = open_store(uri.format(tmp_path))
    made = tmp_path / "new" / "folder"
    assert Path(opened.uri.removeprefix("sqlite:///")).samefile(made / "m.db")
    assert sorted(inside(tmp_path)) == ["new", *(f"new/folder{rest}" for rest in ("", "/.nlt.lock", "/artifacts", "/m.db"))]  # fmt: skip
    found = opened.client.get_experiment(experiment_id(opened, "digits"))
    assert Path(found.artifact_location).samefile(made / "artifacts")


def test_readers_of_a_new_store_do_not_wait_for_writers(tmp_path, quick):
    open_store(f"sqlite:///{tmp_path}/m.db")
    with closing(sqlite3.connect(tmp_path / "m.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_default_experiment_of_a_new_store_keeps_its_artifacts_there_too(template_store):
    [found] = open_store(f"sqlite:///{template_store}/mlflow.db").client.search_experiments()
    assert Path(found.artifact_location) == template_store / "artifacts" / "0"


def test_a_tilde_is_no_folder(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    said = refusal("sqlite:///~/x/m.db")
    assert said == (
        "tracking URI sqlite:///~/x/m.db: a URI knows no ~; write sqlite:////home/me/x/m.db, or sqlite:///./~/x/m.db "
        "for a folder of that name."
    )
    assert inside(tmp_path) == {}
    open_store("sqlite:///./~/x/m.db")
    assert (tmp_path / "~" / "x" / "m.db").exists()


def blocked(top: Path) -> tuple[str, str]:
    (top / "file").write_text("mine")
    return f"{top}/file/a/m.db", f"{top}/file is in the way, no folder): move it away, or name another"


def dangling(top: Path) -> tuple[str, str]:
    (top / "link").symlink_to(top / "nowhere")
    return f"{top}/link/a/m.db", f"{top}/link is in the way, no folder): move it away"


def artifacts_blocked(top: Path) -> tuple[str, str]:
    (top / "artifacts").write_text("mine")
    return f"{top}/m.db", f"{top}/artifacts is in the way, no folder): move it away"


def too_long(top: Path) -> tuple[str, str]:
    return f"{top}/a/b/{'x' * 300}/c/m.db", "xxx/c a folder that you may write to, or name another"


def too_long_a_file(top: Path) -> tuple[str, str]:
    return f"{top}/a/b/{'x' * 300}", "File name too long): make it writable"


def nowhere(top: Path) -> tuple[str, str]:
    return "/proc/new/folder/m.db", "(/proc/new is not there and cannot be made: No such file or directory): make /proc/new/folder a folder that you may write to, or name another"  # fmt: skip


def in_proc(top: Path) -> tuple[str, str]:
    return "/proc/m.db", "(/proc/artifacts is not there and cannot be made: No such file or directory): make /proc a folder that"  # fmt: skip


@pytest.mark.parametrize("place", [blocked, dangling, artifacts_blocked, too_long, too_long_a_file, nowhere, in_proc])
def test_what_is_missing_or_in_the_way_is_named_and_nothing_is_left_behind(tmp_path, place):
    path, message = place(tmp_path)
    before = inside(tmp_path)
    said = refusal(f"sqlite:///{path}")
    assert message in said
    assert said.startswith(f"the MLflow store {path[:200]}")
    assert said.endswith("with --tracking-uri or MLFLOW_TRACKING_URI.")
    assert inside(tmp_path) == before


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), KeyboardInterrupt()])
def test_a_store_that_could_not_be_made_leaves_nothing(tmp_path, monkeypatch, error):
    def fails(part: Path, artifacts: Path) -> None:
        part.write_bytes(b"half")
        part.with_name(part.name + "-journal").write_bytes(b"half")
        raise error

    monkeypatch.setattr(store, "_migrate", fails)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = inside(tmp_path)
    for folder in ("mine", "new/folder"):
        with pytest.raises((BadInput, KeyboardInterrupt), match="disk is full|^$"):
            open_store(f"sqlite:///{tmp_path}/{folder}/m.db")
        assert inside(tmp_path) == before


def test_what_a_killed_process_left_is_made_anew(tmp_path, quick):
    """Else it would look like the store of an older MLflow."""
    for name in (".nlt.new.db", ".nlt.new.db-journal"):
        (tmp_path / name).write_bytes(b"half")
    open_store(f"sqlite:///{tmp_path}/m.db")
    assert sorted(inside(tmp_path)) == [".nlt.lock", "artifacts", "m.db"]


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_by_the_next(tmp_path):
    code = f"from nlt.tracking import open_store; open_store('sqlite:///{tmp_path}/m.db')"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not (tmp_path / ".nlt.new.db-journal").exists():  # in the midst of the migrations
            assert process.poll() is None
        process.kill()
    assert not (tmp_path / "m.db").exists()
    open_store(f"sqlite:///{tmp_path}/m.db")
    assert sorted(inside(tmp_path)) == [".nlt.lock", "artifacts", "m.db"]


# ---- the schema of another MLflow ----


@pytest.fixture
def of(template_store: Path, tmp_path: Path):
    """A database with the revision that is asked for, and a table less where it is asked for: MLflow migrates that."""

    def make(revision: str, without: str | None = None) -> Path:
        path = tmp_path / "other" / "m.db"
        path.parent.mkdir()
        shutil.copy(template_store / "mlflow.db", path)
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", [revision])
            if without:
                database.execute(f"DROP TABLE {without}")
            database.commit()
        return path

    return make


def test_the_newest_schema_is_that_of_a_new_store(template_store):
    with closing(sqlite3.connect(template_store / "mlflow.db")) as database:
        found = {revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")}
    heads, known = store._revisions()
    assert found == heads < known
    assert OLDER in known


@pytest.mark.parametrize("without", [None, "review_queues"])
@pytest.mark.parametrize("revision", [OLDER, "ffffffffffff"])
@pytest.mark.parametrize("command", ["doctor", "launch", "compare", "ui", "resume", "sync"])
def test_a_store_of_another_mlflow_is_refused_with_the_mend_and_left_alone(of, tmp_path, command, revision, without):
    path = of(revision, without)
    before = inside(tmp_path)
    arguments = {"doctor": ["--device", "cpu"], "launch": [str(spec(tmp_path.parent)), "--device", "cpu"]}
    result = CliRunner().invoke(main, [command, *arguments.get(command, []), "--tracking-uri", f"sqlite:///{path}"])
    assert result.exit_code == 2, result.output
    said = result.output.splitlines()[-1].removeprefix("Error: ").removeprefix("store").strip()
    assert_one_sentence(said)
    [needed] = store._revisions()[0]
    assert said == (
        f"the MLflow store sqlite:///{path} is of an older MLflow: its schema is '{OLDER}', the installed MLflow "
        f"{mlflow.__version__} needs '{needed}'; back it up while nothing uses it, then run `mlflow db upgrade sqlite:///{path}`."
        if revision == OLDER
        else f"the MLflow store sqlite:///{path} is of a newer MLflow, or of another program: the installed MLflow "
        f"{mlflow.__version__} does not know its schema 'ffffffffffff'; install the MLflow that wrote it, or name "
        "another with --tracking-uri or MLFLOW_TRACKING_URI."
    )
    assert inside(tmp_path) == before


def spec(folder: Path) -> Path:
    path = folder / "tiny.json"
    path.write_text(check(tiny(), "x").model_dump_json(by_alias=True, exclude={"schema_"}))
    return path


def test_the_command_that_is_named_can_be_typed(of, tmp_path):
    path = of(OLDER)
    path = path.rename(tmp_path / "my store.db")
    assert f"`mlflow db upgrade 'sqlite:///{path}'`." in refusal(f"sqlite:///{path}")


def test_a_database_of_an_older_mlflow_behind_a_server_is_refused_too_without_its_password(of, monkeypatch):
    """SQLite stands for PostgreSQL: what is compared is the same."""
    create, path = sqlalchemy.create_engine, of(OLDER)
    monkeypatch.setattr(sqlalchemy, "create_engine", lambda uri, **how: create(f"sqlite:///{path}"))
    said = refusal("postgresql://me:hunter2@db.example.org/mlflow")
    assert "`mlflow db upgrade 'postgresql://***@db.example.org/mlflow'`" in said


def test_a_store_without_tables_is_no_older_one(tmp_path):
    """An empty file, as of `mktemp`: MLflow makes its tables in it."""
    (tmp_path / "m.db").touch()
    store._check_schema(f"sqlite:///{tmp_path / 'm.db'}")


# ---- doctor ----


def doctor(uri: str) -> dict[str, str]:
    """The rows of `nlt doctor` by name."""
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu", "--tracking-uri", uri])
    assert result.exit_code == 0, result.output
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in result.output.splitlines())


def test_doctor_names_mlflow_and_the_state_of_the_schema(store_uri):
    rows = doctor(store_uri)
    assert rows["mlflow"] == version("mlflow")
    assert rows["store"] == f"{store_uri}, writable, schema current"
    assert not any("skinny" in name for name in rows)


def test_doctor_says_where_only_the_skinny_mlflow_is_installed(store_uri, monkeypatch):
    def skinny(name: str) -> str:
        if name == "mlflow":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", skinny)
    rows = doctor(store_uri)
    assert rows["mlflow (skinny)"] == f"{version('mlflow-skinny')}, without its UI"
    assert "mlflow" not in rows


def test_doctor_checks_no_schema_behind_a_server(monkeypatch):
    class Client:
        def search_experiments(self, max_results: int) -> list[object]:
            return []

    monkeypatch.setattr(store, "_probe", lambda uri: None)
    monkeypatch.setattr(store.mlflow, "MlflowClient", lambda tracking_uri: Client())
    assert doctor("http://127.0.0.1:9")["store"] == "http://127.0.0.1:9, writable"
