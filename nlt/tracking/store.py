"""The MLflow store: where runs go, found usable before anything is trained."""

import logging
import os
import re
import shlex
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each file that a report reads
# MLflow prints a link when a run ends, among the lines of the next run and with the password of the tracking URI.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Read at every call. MLflow's own 7 retries with pauses, 247 s, would hold up what delivery.py tries again anyway, and
# a create_run tried again after its answer was lost makes two runs.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from nlt.settings import BadInput, brief
from nlt.view import TAG, comparison_view, description

PAGE = 1000  # runs asked for at a time
PROBE_SECONDS = 5.0  # an unreachable server is noticed by MLflow itself only after minutes of retries
KIND_TAG = "nlt.kind"  # of runs that have trained nothing: summary
SWEEP_TAG = "nlt.sweep"  # names of the sweeps that a run belongs to, joined by commas
FOLDER_TAG = "nlt.folder"  # of runs in the embedded store: where their folders are
SQLITE_BUSY_SECONDS = 60.0  # how long to wait while other runs write
ANOTHER = "name another with --tracking-uri or MLFLOW_TRACKING_URI"  # the mend that always is
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# It prints a traceback of each database error that it also raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store that has been found usable."""

    uri: str
    client: mlflow.MlflowClient
    artifacts: Path | None
    """Where the embedded store keeps artifacts; None where a server decides."""
    runs: Path
    """Where the folders of runs lie on this machine (see journal.py): beside the embedded store, else `mlruns/runs`."""

    def starting(self) -> AbstractContextManager[Any]:
        """Return a lock to hold while a run begins, so that a RUNNING run without a folder is a dead one."""
        return nullcontext() if self.artifacts is None else FileLock(_store_lock(self.artifacts.parent))

    @property
    def name(self) -> str:
        """The store's name among those whose runs lie in one folder, without user name and password."""
        return self.uri.rpartition("/")[2] if self.artifacts else without_credentials(self.uri).rstrip("/")


def without_credentials(uri: str) -> str:
    """Return a tracking URI without the user name and password in it, and with `***` for those in its query."""
    if uri.startswith("sqlite:///"):
        return uri
    if "@" in uri:
        # Not urlsplit's idea of them: a password may hold "/" or "[", and what is no URL at all may still hold one.
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri)
        uri = (scheme[0] if scheme else "") + uri.rpartition("@")[2]
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)[^=&]*=)[^&#]*", r"\1***", uri)


def shown(uri: str) -> str:
    """Return a tracking URI as it may be printed: with `***` for user name and password."""
    bare = without_credentials(uri)
    if "@" in uri and "@" not in bare and not uri.startswith("sqlite:///"):
        bare = bare.replace("://", "://***@", 1) if "://" in bare else f"***@{bare}"
    return bare


def open_store(uri: str | None = None) -> Store:
    """Open the store: `uri`, else MLFLOW_TRACKING_URI, else SQLite under `mlruns/` of the current folder, made if new.

    Raises:
        BadInput: the store cannot be reached, made or written, or its tables are of another MLflow than the installed.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns').absolute() / 'mlflow.db'}"
    try:
        scheme = urlsplit(uri).scheme
    except ValueError:  # a bracket that opens and never closes, characters that look like "/" to some
        raise _no_url(uri) from None
    if scheme == "sqlite":
        return _open_sqlite(uri)
    if scheme in ("http", "https"):
        _probe(uri)
    elif not scheme.startswith(("postgresql", "mysql", "mssql", "databricks")):
        raise BadInput(
            f"tracking URI {shown(uri)}: MLflow keeps no runs there; use sqlite:///PATH/mlflow.db, an "
            "http(s):// server or a postgresql:// database, or leave it out for the embedded store."
        )
    try:
        if not scheme.startswith(("http", "databricks")):
            _check_schema(uri)  # MLflow would try an unreachable one for 102 seconds, and print each attempt
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except BadInput:
        raise
    except Exception as error:  # database drivers raise what they like, and their texts may hold the password
        if isinstance(error, MlflowException) and (refusal := refused(uri, error)):
            raise refusal from None
        raise BadInput(f"tracking URI {shown(uri)}: cannot be used ({type(error).__name__}).") from None
    return Store(uri, client, None, Path("mlruns").absolute() / "runs")


def reopen_store(uri: str, runs: Path) -> Store:
    """Open a store that another process has found usable, by its `Store.uri` and `Store.runs`.

    A server may be away by now: runs wait for it. Machines that share `runs` can go on with each other's runs.

    Raises:
        BadInput: as `open_store`.
    """
    if uri.startswith("http"):
        return Store(uri, mlflow.MlflowClient(tracking_uri=uri), None, runs)
    return replace(open_store(uri), runs=runs)


def finished_runs(store: Store, experiment_id: str, spec_sha256: str | None = None) -> list[MlflowRun]:
    """Return the finished runs of nlt in an experiment, or those of one spec, the latest first."""
    wanted = "attributes.status = 'FINISHED' and tags.`nlt.seed` LIKE '%'"
    if spec_sha256 is not None:
        wanted += f" and tags.`nlt.spec_sha256` = '{spec_sha256}'"
    found: list[MlflowRun] = []
    token = None
    while True:
        page = store.client.search_runs(
            [experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=PAGE, page_token=token
        )
        found += [run for run in page if KIND_TAG not in run.data.tags]
        token = page.token
        if not token:
            return found


def refused(uri: str, error: MlflowException, experiment: str | None = None) -> BadInput | None:
    """Return the mend where a server is not trusted, knows no such user (401) or permits too little (403), else None.

    `experiment` names the experiment that was to be written, if one was.
    """
    server = f"the MLflow server {shown(uri)}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return BadInput(
            f"{server} has a certificate that is not trusted: name the file of its authority's in "
            "MLFLOW_TRACKING_SERVER_CERT_PATH."
        )
    status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if status == 401:
        return BadInput(
            f"{server} does not accept this user and password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to those its administrator gave you."
        )
    if status != 403:
        return None
    if "Invalid Host header" in str(error):
        return BadInput(
            f"{server} does not answer to that host name: its administrator has to name it in `mlflow server "
            "--allowed-hosts` (NLT_HOST in docker/.env)."
        )
    if experiment is None:
        return BadInput(f"{server} does not let you read it: ask its administrator for the permission READ.")
    return BadInput(
        f"{server} does not let you add runs to the experiment {experiment!r}: ask its owner or the administrator for "
        "the permission EDIT, or name another experiment in the spec's `experiment`."
    )


def _open_sqlite(uri: str) -> Store:
    # sqlite:///relative.db and sqlite:////absolute.db, as SQLAlchemy reads them; it ends the path at a "?".
    given = uri.removeprefix("sqlite:///")
    path = Path(given).absolute()
    if not uri.startswith("sqlite:///") or os.path.isdir(path) or uri == "sqlite:///" or "?" in str(path):
        raise BadInput(
            f"tracking URI {shown(uri)}: name a file, without a question mark, as in sqlite:///mlruns/mlflow.db."
        )
    if os.path.expanduser(given) != given:
        # MLflow's own commands take it for a folder named "~", so nlt does not take it for another place than they.
        raise BadInput(
            f"tracking URI {uri}: a URI knows no ~; write sqlite:///{os.path.expanduser(given)}, or "
            f"sqlite:///./{given} for a folder of that name."
        )
    artifacts = path.parent / "artifacts"
    made: list[Path] = []  # what to take away if the rest fails
    try:
        if path.exists():
            _check_schema(f"sqlite:///{path}")  # before a file is made or a table changed
        made += _make_folders(artifacts, path)
        if not _store_lock(path.parent).exists():
            made.insert(0, _store_lock(path.parent))
        _store_lock(path.parent).touch()  # FileLock waits for ever where no file can be made, as in /proc
        # MLflow's own migrations crash when several processes run them on a fresh file at once.
        with FileLock(_store_lock(path.parent)):
            if not path.exists():
                _make_database(path, artifacts)
            # The driver waits that long for another run's write; its own 5 s are not enough for eight runs.
            client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}?timeout={SQLITE_BUSY_SECONDS:.0f}")
            client.search_experiments(max_results=1)
            with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_SECONDS)) as database:
                database.execute("BEGIN IMMEDIATE")  # fails where the file cannot be written
                database.rollback()
        if not os.access(artifacts, os.W_OK):
            raise PermissionError(f"{artifacts} is read-only")
    except BaseException as error:
        _take_away(made)
        # ValueError: bytes that are not UTF-8
        if not isinstance(error, OSError | ValueError | sqlite3.Error | SQLAlchemyError | MlflowException):
            raise
        reason = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"the MLflow store {path} cannot be written ({reason}): make it writable, or {ANOTHER}."
        ) from None
    return Store(f"sqlite:///{path}", client, artifacts, path.parent / "runs")


def _make_folders(folder: Path, store: Path) -> list[Path]:
    """Make a folder and those above it; return the new ones, the innermost first.

    Raises:
        BadInput: something else is in the way, or a folder cannot be made; none is left behind. It names `store`.
    """
    chain = (folder, *folder.parents)
    new = [place for place in chain if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _take_away(new)
        cannot = f"the MLflow store {store} cannot be written"
        for place in chain:
            if os.path.lexists(place) and not os.path.isdir(place):
                raise BadInput(f"{cannot} ({place} is in the way, no folder): move it away, or {ANOTHER}.") from None
        outermost = new[-1] if new else folder  # another process may have taken one away meanwhile
        raise BadInput(
            f"{cannot} ({outermost} is not there and cannot be made: {error.strerror}): make {store.parent} a folder "
            f"that you may write to, or {ANOTHER}."
        ) from None
    return new


def _take_away(made: list[Path]) -> None:
    for path in made:
        with suppress(OSError):  # by now another process may have put something there
            path.rmdir() if path.is_dir() else path.unlink()


def _make_database(path: Path, artifacts: Path) -> None:
    """Make MLflow's tables, seconds of migrations, and name the file `path` only when all of them are there.

    One that a killed process left half-made could not be told from one of an older MLflow.
    """
    part = path.resolve().with_name(".nlt.new.db")
    parts = [part.with_name(part.name + suffix) for suffix in ("", "-journal", "-wal", "-shm")]
    _take_away(parts)  # of a process that was killed
    try:
        part.touch()  # where no file can be made MLflow would try for 102 seconds
        _migrate(part, artifacts)
        with closing(sqlite3.connect(part)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers no longer wait for a writer
        part.replace(path.resolve())
    finally:
        _take_away(parts)


def _migrate(database: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # a second to import, for new stores only

    SqlAlchemyStore(f"sqlite:///{database}", str(artifacts)).engine.dispose()  # type: ignore[no-untyped-call]


def _check_schema(uri: str) -> None:
    """Compare a database's schema with the installed MLflow's, and change nothing.

    MLflow itself compares too late: where a table is missing it migrates at once, without a word or a backup, and any
    other schema it calls out of date, a newer one too.

    Raises:
        BadInput: the schema is older, or unknown.
    """
    waits = {"timeout": SQLITE_BUSY_SECONDS} if uri.startswith("sqlite") else {"connect_timeout": int(PROBE_SECONDS)}
    connect_args = {} if uri.startswith("mssql") else waits
    engine = sqlalchemy.create_engine(uri, connect_args=connect_args, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        found = set(MigrationContext.configure(connection).get_current_heads())
    heads, known = _revisions()
    if not found or found == heads:  # none: MLflow makes its tables
        return
    schema, installed = brief(", ".join(sorted(found))), f"the installed MLflow {mlflow.__version__}"
    if found <= known:
        raise BadInput(
            f"the MLflow store {shown(uri)} is of an older MLflow: its schema is {schema}, {installed} needs "
            f"{', '.join(map(repr, heads))}; back it up while nothing uses it, then run "
            f"`mlflow db upgrade {shlex.quote(shown(uri))}`."
        )
    raise BadInput(
        f"the MLflow store {shown(uri)} is of a newer MLflow, or of another program: {installed} does not know its "
        f"schema {schema}; install the MLflow that wrote it, or {ANOTHER}."
    )


@cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return the newest schema of the installed MLflow, and all that it can migrate from."""
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return frozenset(scripts.get_heads()), frozenset(script.revision for script in scripts.walk_revisions())


def _store_lock(folder: Path) -> Path:
    """Return the file to lock while the embedded store is made, or a run in it begins."""
    return folder / ".nlt.lock"


def _probe(uri: str) -> None:
    try:
        # urllib would take user name and password for a part of the host's name and look it up; /health needs neither.
        # Whom to trust is MLflow's to say, by its own environment variables, when it sends the password.
        address, trusting = f"{without_credentials(uri).rstrip('/')}/health", ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(address, timeout=PROBE_SECONDS, context=trusting):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise BadInput(f"the MLflow server {shown(uri)} answers {error.code}: look at its log.") from None
    except (ValueError, HTTPException):
        raise _no_url(uri) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise BadInput(
            f"the MLflow server {shown(uri)} does not answer ({reason}): start it, or unset MLFLOW_TRACKING_URI "
            "to use the embedded store."
        ) from None


def _no_url(uri: str) -> BadInput:
    return BadInput(f"tracking URI {shown(uri)}: is no address; write it as http://HOST:PORT or sqlite:///PATH.")


def experiment_id(store: Store, name: str, view: str | None = None, about: str | None = None) -> str:
    """Return the id of an experiment, made with its view and its description if it is new; by default those of runs.

    Raises:
        BadInput: the experiment is deleted.
    """
    view, about = view or comparison_view(), about or description(name)
    found = store.client.get_experiment_by_name(name)
    if found is None:
        location = None if store.artifacts is None else str(store.artifacts)
        try:
            created: str = store.client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process was faster
            found = store.client.get_experiment_by_name(name)
            if found is None:
                raise
        else:
            _set_experiment_tag(store, created, "mlflow.note.content", about)
            _set_experiment_tag(store, created, TAG, view)
            return created
    if found.lifecycle_stage != "active":
        raise BadInput(
            f"the MLflow experiment {name!r} is deleted: restore it, or name another in the spec's `experiment`."
        )
    if found.tags.get(TAG) != view:  # the view of an older version of nlt
        _set_experiment_tag(store, found.experiment_id, TAG, view)
    return str(found.experiment_id)


def _set_experiment_tag(store: Store, experiment: str, key: str, value: str) -> None:
    try:
        store.client.set_experiment_tag(experiment, key, value)
    except MlflowException:  # of two processes that set it at once, a database refuses one
        if store.client.get_experiment(experiment).tags.get(key) != value:
            raise
