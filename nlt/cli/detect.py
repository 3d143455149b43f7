"""Commands on a user's own data: detect, apply."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from nlt.cli.options import (
    FILE,
    data_root_option,
    device_option,
    friendly,
    main,
    needs_ray,
    ray_option,
    tracking_option,
)
from nlt.events import Stopped
from nlt.settings import BadInput, brief, one_line
from nlt.terminal import Bars, say, warn

if TYPE_CHECKING:
    import torch

    from nlt.backbones import AnyBackbone
    from nlt.cleaning.export import Kind
    from nlt.cleaning.judge import Judged
    from nlt.events import Progress
    from nlt.features import Maker
    from nlt.spec import Experiment
    from nlt.tracking import Store


MOST_SAID = 5  # issues that are printed; the report has all
MEASURES = (
    "rate", "rate_low", "rate_high", "accuracy", "seconds",
    "auroc", "average_precision", "precision", "recall", "rate_error",  # where clean labels are known
)  # fmt: skip


@main.command()
@click.argument("path", type=FILE, required=False)
@click.option("--labels", type=FILE, default=None, help="CSV with the columns path and label, or label alone.")
@click.option("--features", type=FILE, default=None, help="Own features instead of images: .npy, one row a sample.")
@click.option(
    "--probabilities", type=FILE, default=None, help="Own out-of-sample probabilities, .npy, one row a sample."
)
@click.option("--out", type=FILE, default=None, help="Output folder; by default PATH.nlt beside PATH.")
@click.option("--backbone", default="auto", show_default=True, help="auto, pixels, lite0 or timm:NAME.")
@click.option("--weights", default=None, help="File of weights for timm:NAME.")
@click.option("--image-size", type=int, default=None, help="Side in pixels at which the network sees images.")
@click.option(
    "--detector", default="loo", show_default=True,
    help="What ranks labels: loo (features, no training), o2u (trains O2U-Net), or an experiment file whose method "
    "gives samples scores. With the latter two --image-size is the side they train at.",
)  # fmt: skip
@click.option(
    "--action", type=click.Choice(["remove", "relabel", "keep"]), default=None,
    help="What becomes of labels that are more probably wrong than right: by default remove, or keep where the "
    "estimate is unreliable.",
)  # fmt: skip
@click.option(
    "--export", type=click.Choice(["folder", "csv", "npz", "labelstudio"]), default=None,
    help="Form of the clean data set; by default that of the input.",
)  # fmt: skip
@click.option("--review", type=click.IntRange(0, 20_000), default=1000, show_default=True, help="Samples to review.")
@ray_option
@device_option
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the random sample to review."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_root_option
@tracking_option
@friendly
def detect(
    path: Path | None,
    labels: Path | None,
    features: Path | None,
    probabilities: Path | None,
    out: Path | None,
    backbone: str,
    weights: str | None,
    image_size: int | None,
    detector: str,
    action: str | None,
    export: Any,
    review: int,
    address: str | None,
    device: str,
    seed: int,
    as_json: bool,
    data_root: Path,
    tracking_uri: str | None,
) -> None:
    """Find the wrong labels of your own data, say how many there are, and write a clean data set.

    PATH: a folder with a folder for each class, with --labels a folder and a CSV, a CSV, or an .npz. It is never
    changed. Network weights of ImageNet come with nlt; nothing is downloaded.

    \b
    nlt detect photos/
    nlt detect photos/ --labels labels.csv --action relabel --export csv
    nlt detect --features embeddings.npy --labels labels.csv
    nlt detect photos/ --detector o2u
    nlt detect /shared/photos/ --ray auto
    """
    began = time.monotonic()
    given = Given(path, labels, features, probabilities)
    source = given.source()
    if address is not None and path is None:
        raise BadInput("--ray makes features of images, and here are none: leave it out.")
    out = out or beside(source)
    from nlt.backbones import check_image_size, parse
    from nlt.cleaning import check_export, check_place, write_output
    from nlt.cleaning.decide import THRESHOLD
    from nlt.cleaning.folder import DECISIONS
    from nlt.hardware import find_device
    from nlt.tracking import open_store

    # What can be wrong is found before the work.
    check_place(out, source, given.labels_file())
    _check_apart(given, data_root, tracking_uri)
    kind = given.kind()
    form: Any = export or {"folder": "folder", "list": "csv", "npz": "npz", "features": "csv"}[kind]
    check_export(form, kind)
    check_image_size(image_size)
    trained = read_detector(detector, given)
    here = find_device(device) if trained else None
    backbones = parse(backbone, _everywhere(weights, address), None if trained else image_size)
    store = open_store(tracking_uri)
    try:
        with _machines(address, device) as machines, Bars() as progress:
            tell = warn if as_json else say
            judged = _judge(given, backbones, machines, data_root, seed, progress, tell)
            if trained:
                judged = judged.by_training(
                    trained, detector, side=image_size, data_root=data_root, device=here, seed=seed, progress=progress,
                    note=lambda sentence: tell(f"  {sentence}"),
                )  # fmt: skip
            settings = {"backbone": backbone, "weights": weights, "image_size": image_size, "review": review}
            settings |= {} if detector == "loo" else {"detector": detector}
            reliable = judged.errors.rate.reliable
            done: Any = action or ("remove" if reliable else "keep")
            written = write_output(
                out, judged.data, judged.errors, judged.issues,
                action=done, export=form, review=review, seed=seed, settings=settings,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(
            f"interrupted; nothing was written to {out}, and the same command goes on from its caches."
        ) from None
    rate = judged.errors.rate
    found = {
        "images": written.images, "classes": len(judged.data.classes), "unreadable": written.unreadable,
        "rate": rate.point, "rate_low": rate.low, "rate_high": rate.high, "flagged": written.flagged,
        "accuracy": judged.errors.accuracy, "features": judged.errors.features, "ranking": judged.errors.ranking,
        "outside_weights": judged.outside_weights, "action": done, "out": str(out), "emptied": written.emptied,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    quality = judged.quality(THRESHOLD)
    run_id = _track(store, source, judged, found | quality, out)
    if action is None and not reliable:
        warn("the estimate is unreliable: nothing is removed, and what is flagged waits for review (or give --action).")
    if written.emptied:
        warn(f"the clean data set has no sample of {', '.join(map(brief, written.emptied))}: look before you use it.")
    if any((out / DECISIONS).glob("*.csv")):
        warn(f"what people decided is kept, and is no part of this result: nlt apply {quote(str(out))} takes it in.")
    if as_json:
        say(json.dumps(found | quality | {"run_id": run_id}))
        return
    _print(judged, found, out)


def beside(source: Path) -> Path:
    """Return where the output goes by default: NAME.nlt beside the input.

    Raises:
        BadInput: the input has nothing beside it.
    """
    resolved = source.resolve()
    if not resolved.name:
        raise BadInput(f"{source} has nothing beside it: name an output folder by --out.")
    place = resolved if source.name in ("", "..") else source  # "." and "photos/.."
    return place.with_name(f"{resolved.name}.nlt")


class Given(NamedTuple):
    """What is to be judged, as the command line names it."""

    path: Path | None
    labels: Path | None
    features: Path | None
    probabilities: Path | None

    def source(self) -> Path:
        """Return what the output is called by.

        Raises:
            BadInput: images and numbers, or neither.
        """
        if self.features and self.probabilities:
            raise BadInput("--features and --probabilities: give one of the two.")
        if numbers := self.features or self.probabilities:
            if self.path is not None:
                raise BadInput(f"{self.path} and {numbers}: name images or numbers, not both.")
            if self.labels is None:
                raise BadInput(f"{numbers} needs --labels, a CSV with a column label or an .npy: one label a row.")
            return numbers
        if self.path is None:
            raise BadInput("name a folder of images, a CSV or an .npz: nlt detect photos/, or --features and --labels.")
        return self.path.parent if self.is_list() else self.path

    def is_list(self) -> bool:
        """Return whether it is a CSV alone, whose folder is the input.

        Raises:
            BadInput: there is nothing to be judged.
        """
        from nlt.data.labelled import kind_of

        return self.path is not None and kind_of(self.path) == "list"

    def kind(self) -> "Kind":
        """Return what it is taken for.

        Raises:
            BadInput: as `is_list`.
        """
        from nlt.data.labelled import kind_of

        return "features" if self.path is None else "list" if self.labels is not None else kind_of(self.path)

    def labels_file(self) -> Path | None:
        """Return the file that labels are from, if it is not the input itself."""
        return self.path if self.labels is None and self.is_list() else self.labels


def _check_apart(given: Given, data_root: Path, tracking_uri: str | None) -> None:
    """Make sure that nlt's own folders do not lie in a folder of images, all of which would be judged.

    Raises:
        BadInput: one does.
    """
    if given.path is None or given.labels is not None or not given.path.is_dir():
        return
    named = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    for place, option in ((data_root, "--data-root"), (None if named else Path("mlruns"), "--tracking-uri")):
        if place is not None and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(given.path)):
            raise BadInput(
                f"{option}: {place}/ would lie in the input {given.path}, which is never touched: run nlt in the "
                f"folder above, or name another place by {option}."
            )


def read_detector(text: str, given: Given) -> "Experiment | Literal['o2u'] | None":
    """Return what is to be trained to rank labels, None for nothing.

    Raises:
        BadInput: it is no detector and no experiment file, its method gives no scores, or there are no images.
    """
    if text == "loo":
        return None
    if given.path is None:
        raise BadInput(f"--detector {text} trains on images, of which there are none: leave it out.")
    if text == "o2u":
        return "o2u"
    if not text.endswith(".json"):
        raise BadInput(f"--detector {brief(text)}: use loo, o2u, or an experiment file, FILE.json.")
    from nlt.cleaning.trained import check_reports
    from nlt.reading import load

    spec = load(text)
    check_reports(spec, text)
    return spec


class Machines(NamedTuple):
    """Where features are made."""

    device: "torch.device"
    maker: "Maker | None"


@contextmanager
def _machines(address: str | None, device: str) -> Iterator[Machines]:
    """Take this machine, or connect to a cluster."""
    if address is None:
        from nlt.hardware import find_device

        yield Machines(find_device(device), None)
        return
    with needs_ray():
        from nlt.sweep.extraction import features_on_ray
    with features_on_ray(address, device) as (maker, on):
        yield Machines(on, maker)


def _everywhere(weights: str | None, address: str | None) -> str | None:
    """Return the file of weights by a path that holds in another working directory, too."""
    return weights if weights is None or address is None else os.path.abspath(os.path.expanduser(weights))


def _judge(
    given: Given, backbones: "Sequence[AnyBackbone]", machines: Machines, data_root: Path, seed: int,
    progress: "Progress", tell: Callable[[str], None],
) -> "Judged":  # fmt: skip
    from nlt.cleaning.judge import judge, judge_numbers
    from nlt.data.labelled import read_labelled
    from nlt.data.numbers import read_numbers

    if given.path is None:
        assert given.labels is not None
        numbers = read_numbers(given.labels, features=given.features, probabilities=given.probabilities)
        return judge_numbers(numbers, seed)
    data = read_labelled(given.path, given.labels, cache=data_root / "looked", progress=progress)
    for sentence in data.notes:
        warn(f"{sentence}.")
    lost = f"; {len(data.left_out):,} files cannot be read and are left out" if data.left_out else ""
    tell(f"{given.path}: {len(data):,} images of {len(data.classes)} classes{lost}")
    return judge(
        data, backbones, cache=data_root / "features", device=machines.device, maker=machines.maker, seed=seed,
        progress=progress,
        note=lambda sentence: tell(f"  {sentence}"),
    )  # fmt: skip


def _track(store: "Store", source: Path, judged: "Judged", found: dict[str, Any], out: Path) -> str | None:
    """Log what was found; a store that is away loses nothing, as all of it is in `out`."""
    from nlt.cleaning.output import input_digest
    from nlt.tracking.detection import write_detection

    shares = {key: found[key] for key in MEASURES if key in found}
    shares["flagged"] = found["flagged"] / max(1, found["images"])
    params = {
        key: str(found[key])
        for key in ("images", "classes", "unreadable", "features", "ranking", "outside_weights", "action", "out")
    }
    grid = out / "worst.png"
    try:
        return write_detection(
            store, source.resolve().name, judged.errors.rate.reading,
            {key: value for key, value in params.items() if value},
            {f"detect/{key}": float(value) for key, value in shares.items()},
            (source.resolve().name, input_digest(judged.data)[:16]),
            [out / name for name in ("report.html", "labels.csv", "manifest.json")],
            grid if grid.is_file() else None,
        )  # fmt: skip
    except Exception as error:  # whatever ails MLflow, its server, or the place of its artifacts
        kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
        why = f"{kind}{error}".strip().partition("\n")[0].removesuffix(".")
        warn(f"MLflow has no run of it ({why}); all that was found is in {out}.")
        return None


def _print(judged: "Judged", found: dict[str, Any], out: Path) -> None:
    _print_rate(judged.errors.rate)
    used = found["features"] or "your own numbers"
    used += "" if found["ranking"] == "posterior" else f" and {found['ranking']}'s training"
    origin = f", weights of outside origin: {judged.outside_weights}" if judged.outside_weights else ""
    say(f"{found['flagged']:,} of {found['images']:,} labels are more probably wrong than right (by {used}{origin})")
    for issue in judged.issues[:MOST_SAID]:
        say(f"  {one_line(issue.sentence)}")
    if len(judged.issues) > MOST_SAID:
        say(f"  and {len(judged.issues) - MOST_SAID:,} more things to know in the report")
    for row in judged.errors.table().head(8).itertuples():
        line = f"{row.p_wrong:5.1%} wrong  {row.id}  given {row.given_label}, suggested {row.suggested_label}"
        say(f"  {one_line(line)}")  # names of files and classes may hold what steers a terminal
    say(f"look at them: {out / 'report.html'}  (then: nlt apply {quote(str(out))} decisions.csv)")
    say(f"all labels: {out / 'labels.csv'}; {found['seconds']:g} s")


def _print_rate(rate: Any) -> None:
    say(f"wrong labels: {rate.point:.1%}, between {rate.low:.1%} and {rate.high:.1%}")
    say(f"  {rate.reading}")


@main.command()
@click.argument("out", type=FILE)
@click.argument("decisions", type=FILE, nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def apply(out: Path, decisions: tuple[Path, ...], as_json: bool) -> None:
    """Take reviewers' decisions into OUT, the output folder of nlt detect, and write its clean data set anew.

    Every file is kept in OUT/decisions/; the same file twice changes nothing, those of several people are merged.

    \b
    nlt apply photos.nlt decisions.csv
    nlt apply photos.nlt decisions-ann.csv decisions-bob.csv
    """
    from dataclasses import asdict

    from nlt.cleaning import apply as take_in

    done = take_in(out, decisions)
    if as_json:
        say(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return
    say(
        f"{done.decided:,} samples decided: {done.kept:,} kept, {done.relabelled:,} relabelled, "
        f"{done.removed:,} removed, {done.unsure:,} unsure"
    )
    if done.disagreements:
        say(f"{done.disagreements:,} samples that people disagree in: {out / 'disagreements.csv'}")
    if done.suggestions:
        say(f"the suggested label was right for {done.suggestions_right:,} of {done.suggestions:,}")
    if done.rate is None:
        say(f"{done.sample_answered} of {done.sample_size} of the random sample are answered: more give a rate")
    else:
        _print_rate(done.rate)
    say(f"the clean data set of {done.images:,} samples is written anew in {out}")
