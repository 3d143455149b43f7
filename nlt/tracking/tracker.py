"""A run's record, first in its journal, from there in MLflow; `docs/mlflow.md` lists what it holds.

N training samples.
"""

import contextlib
from typing import Literal

import numpy as np

from nlt.figures import loss_histogram
from nlt.run import EpochRecord, Prepared, Run
from nlt.tracking import artifacts
from nlt.tracking.delivery import PATIENCE_S, Courier
from nlt.tracking.journal import Record, RunFolder, epoch_record, now
from nlt.tracking.store import Store


class Tracker:
    """One run's record: first in its journal, from there in MLflow."""

    def __init__(self, store: Store, folder: RunFolder, prepared: Prepared):
        self._store, self._folder, self._prepared = store, folder, prepared
        self._wrong_N = prepared.train.wrong_N
        self.run_id = folder.run_id
        self._tops: dict[str, float] = {}
        self._complaint = ""
        self.epochs = folder.epochs()
        """All epochs so far, those before a resumption too."""
        for epoch in self.epochs:
            self._top(epoch)
        self._courier = Courier(store, folder)
        self._courier.wake()

    def log_resumption(self) -> None:
        """Note that the run goes on."""
        self._append({"kind": "resume", "time": now()})

    def log_epoch(self, epoch: EpochRecord) -> None:
        """Log an epoch's metrics, per-sample losses and their histogram.

        Nothing happens if it was logged before: a run that was killed between journal and checkpoint repeats an epoch.
        """
        if epoch.step <= len(self.epochs):
            return
        title = f"epoch {epoch.step}: {epoch.stage} {epoch.t}"
        picture = loss_histogram(epoch.losses_N, self._wrong_N, self._top(epoch), title)
        images = artifacts.stepped_image(self._folder.run_id, "train/loss_histogram", epoch.step, picture)
        self._append(epoch_record(epoch, images))
        self.epochs.append(epoch)

    def finish(self, run: Run, log_model: bool) -> dict[str, float]:
        """Log the final metrics and artifacts, mark the run FINISHED, and return the final metrics."""
        folder, train = self._folder, self._prepared.train
        artifacts.write(folder.path / "artifacts", run, self._prepared, self.epochs)
        if log_model:
            self._complaint = artifacts.log_model(self._store.uri, folder.run_id, run.nets[0], train)
        final = final_metrics(self.epochs)
        end = {"kind": "end", "time": now(), "status": "FINISHED", "over": True}
        self._append(end | {"step": self.epochs[-1].step, "metrics": final})
        return final

    def stop(self, status: Literal["FAILED", "KILLED"], why: str, over: bool) -> None:
        """Mark the run as failed or killed and say why in the tag `nlt.stopped`; `over`: going on is of no use."""
        if self._folder.is_over():  # Ctrl-C came when it had just been finished
            return
        tags = {"nlt.stopped": why[:4000]}
        end = {"kind": "end", "time": now(), "status": status, "over": over, "tags": tags}
        with contextlib.suppress(OSError):  # a full disk is why we stop, perhaps
            self._append(end)

    def close(self, patience_s: float = PATIENCE_S) -> str:
        """Wait for what is under way to MLflow and let go of the run; return what to tell the user, or ""."""
        complaint = self._complaint
        try:
            drained = self._courier.drain(patience_s)
        except KeyboardInterrupt:  # nobody wants to wait: `nlt sync` delivers the rest
            drained = False
        if not drained:
            complaint += (
                f"{self._folder.waiting()} records of run {self._folder.run_id} have not reached MLflow "
                f"({self._courier.complaint()}): they are safe in {self._folder.path}, and `nlt sync` delivers them."
            )
        self._courier.stop()
        self._folder.close()
        return complaint

    def _append(self, record: Record) -> None:
        self._folder.journal.append(record)
        self._courier.wake()

    def _top(self, epoch: EpochRecord) -> float:
        """One axis for a whole stage, from its first epoch, so that sliding through epochs shows the losses move."""
        seen = epoch.losses_N[epoch.losses_N.isfinite()]
        return self._tops.setdefault(epoch.stage, max(float(np.quantile(seen.numpy(), 0.999)) * 1.25, 1e-3))


def final_metrics(epochs: list[EpochRecord]) -> dict[str, float]:
    """Return a run's headline numbers.

    `final/test_accuracy_last`: the last epoch's, measured after it, or before it under `evaluate: before` (which never
    scores the last weights); `_mean10`: mean over the last ten epochs of the last stage (all of them, if fewer);
    `_at_best_val`: in the last stage's first epoch of the highest validation accuracy, where there is a validation
    split; of a stage that stops early, which then has these weights, the same as `_last`. `final/noise_*`: the last
    mask's measures. `final/train_seconds`: the epochs, less evaluation.
    `final/images_seen`: how many images all networks together were trained on, epochs and views counted.
    """
    last_stage = [epoch.metrics for epoch in epochs if epoch.stage == epochs[-1].stage]
    final = {
        "final/test_accuracy_last": last_stage[-1]["test/accuracy"],
        "final/test_accuracy_mean10": float(np.mean([m["test/accuracy"] for m in last_stage[-10:]])),
        "final/train_seconds": sum(epoch.metrics["time/epoch_seconds"] for epoch in epochs),
        **({"final/images_seen": seen} if (seen := epochs[-1].metrics.get("train/images_seen")) is not None else {}),
    }
    if "val/accuracy" in last_stage[-1]:
        best = max(last_stage, key=lambda m: m["val/accuracy"])
        final["final/test_accuracy_at_best_val"] = best["test/accuracy"]
    masks = [epoch.metrics for epoch in epochs if epoch.detects]
    if masks:
        final |= {f"final/noise_{k[6:]}": v for k, v in masks[-1].items() if k.startswith("noise/")}
    return final
