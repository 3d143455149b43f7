"""The only files that write to MLflow, and the journal that each run keeps on this machine until MLflow has it all."""

from nlt.tracking.delivery import PATIENCE_S, data_digest, kill_orphans, sync
from nlt.tracking.journal import Busy, RunFolder, folder_of, folders, in_progress, opened
from nlt.tracking.shared import find_prefix, forget_prefixes, leave_prefix
from nlt.tracking.start import params, start_run
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
from nlt.tracking.tracker import Tracker, final_metrics

__all__ = [
    "LONGEST_TAG", "PATIENCE_S", "SWEEP_TAG", "Busy", "RunFolder", "Store", "Tracker", "data_digest", "experiment_id",
    "final_metrics", "find_prefix", "finished_runs", "folder_of", "folders", "forget_prefixes", "in_progress",
    "kill_orphans", "leave_prefix", "open_store", "opened", "params", "refused", "reopen_store", "shown", "start_run",
    "sync", "without_credentials", "write_summary",
]  # fmt: skip
