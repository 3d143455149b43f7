"""One run of a sweep, and what is told of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from nlt.data import Dataset
from nlt.events import Emit, Event, Failed, Finished, Noted, Progressed, Started
from nlt.launcher import Interrupted, Listener, Options, RunFailed, Unfinished, launch, resume
from nlt.run import EpochRecord, Prepared
from nlt.settings import BadInput
from nlt.spec import Experiment
from nlt.tracking import Store


@dataclass(frozen=True)
class Job:
    """One run to be made, or to go on."""

    spec: Experiment
    seed: int
    unfinished: Unfinished | None = None


def run_job(
    job: Job,
    options: Options,
    emit: Callable[[Event], None],
    *,
    store: Store | None = None,
    dataset: Dataset | None = None,
    patient: bool = True,
    patience_s: float = 0.0,
) -> Finished | Failed:
    """Run one job in this process, and tell of it.

    Args:
        job: what runs.
        options: what it has in common with the other runs of the launch.
        emit: called with each event; the last one is returned too.
        store: an open one.
        dataset: the spec's data, loaded already.
        patient: whether a tracking server that is away is waited for; otherwise it is an error at once.
        patience_s: how long to wait for another process to let go of an unfinished run.
    """

    begun = ""

    def note(sentence: str) -> None:
        emit(Noted(sentence))

    def on_start(run_id: str, prepared: Prepared, done: int) -> None:
        nonlocal begun
        begun = run_id
        shared = done > 0 and job.unfinished is None
        emit(Started(run_id, _about(prepared), done, prepared.steps, shared))

    def on_epoch(epoch: EpochRecord) -> None:
        emit(Progressed(epoch.step, epoch.steps, epoch.stage, epoch.t, epoch.metrics))

    listener = Listener(note, on_start, on_epoch)
    try:
        store = store or options.open_store()
        if job.unfinished:
            result = resume(
                job.unfinished, options=options, listener=listener, store=store, dataset=dataset, patience_s=patience_s
            )
        else:
            result = launch(
                job.spec,
                seed=job.seed,
                options=options,
                listener=listener,
                store=store,
                dataset=dataset,
                patient=patient,
            )
    except BadInput as error:
        end: Finished | Failed = Failed("bad input", str(error))
    except RunFailed as error:
        end = Failed("failed", str(error))
    except Interrupted as error:
        end = Failed("interrupted", str(error), error.run_id, error.undelivered)
    except KeyboardInterrupt:  # before there was a run, or again while its end was delivered
        end = interrupted(begun)
    except Exception:  # a mistake of nlt's or of a method's: it is to stop no other run
        end = Failed("died", f"it ended with an error.\n{traceback.format_exc().rstrip()}")
    else:
        end = Finished(result.name, result.seed, result.run_id, result.metrics, result.undelivered, result.stop_asked)
    emit(end)
    return end


def interrupted(run_id: str) -> Failed:
    """Return what became of a job that was stopped and could not say where; without a run's id before it had one."""
    return Failed(
        "interrupted", f"interrupted in run {run_id}" if run_id else "interrupted before the run began", run_id
    )


def _about(prepared: Prepared) -> str:
    wrong = ""
    if (wrong_N := prepared.train.wrong_N) is not None:
        wrong = f", {float(wrong_N.double().mean()):.1%} wrong labels"
    sizes = f"{len(prepared.train):,} training images{wrong}, {len(prepared.test):,} test images"
    return f"{prepared.dataset.name}: {sizes} · {prepared.device} {prepared.precision}"


def in_turn(jobs: list[Job], options: Options, emit: Emit, store: Store) -> None:
    """Run one job after the other in this process, whatever happens to one of them, until Ctrl-C or SIGTERM."""
    for index, job in enumerate(jobs):
        # That an address is wrong shows in the first run, at once; later a server is only away, and is waited for.
        end = run_job(job, options, lambda event, index=index: emit(index, event), store=store, patient=index > 0)  # type: ignore[misc]
        if (isinstance(end, Finished) and end.stop_asked) or (isinstance(end, Failed) and end.kind == "interrupted"):
            return
