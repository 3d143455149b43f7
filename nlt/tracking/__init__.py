"""The only files that write to MLflow, and the journal that each run keeps on this machine until MLflow has it all."""

from nlt.tracking.delivery import data_digest, kill_orphans, sync
from nlt.tracking.journal import Busy, RunFolder, folder_of, folders, opened
from nlt.tracking.shared import find_prefix, forget_prefixes, leave_prefix
from nlt.tracking.store import (
    SWEEP_TAG,
    Store,
    experiment_id,
    finished_runs,
    open_store,
    refused,
    reopen_store,
    shown,
    without_credentials,
)
from nlt.tracking.summary import LONGEST_TAG, write_summary
from nlt.tracking.tracker import Facts, Tracker, final_metrics, git_commit, params, start_run

__all__ = [
    "LONGEST_TAG", "SWEEP_TAG", "Busy", "Facts", "RunFolder", "Store", "Tracker", "data_digest", "experiment_id",
    "final_metrics", "find_prefix", "finished_runs", "folder_of", "folders", "forget_prefixes", "git_commit",
    "kill_orphans", "leave_prefix", "open_store", "opened", "params", "refused", "reopen_store", "shown",
    "start_run", "sync", "without_credentials", "write_summary",
]  # fmt: skip
