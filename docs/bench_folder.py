"""What reading and summing the bytes of an image folder costs against decoding them; docs/performance.md quotes it.

`python docs/bench_folder.py FOLDER [--image-size S]`: medians of three, all files in the system's cache.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nlt.data import ImageFolder, decoding
from nlt.data.listing import list_images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int)
    arguments = parser.parse_args()
    top, listed = arguments.folder, list_images(arguments.folder, recursive=True)
    paths = [file.path for file in [*listed.train, *(listed.test or [])]]
    pixels = decoding.Pixels(arguments.image_size, depth=None, on_bad_image="error")
    settings = ImageFolder(path=str(top), image_size=arguments.image_size)

    def read_and_sum() -> None:
        list(decoding.in_order(lambda row: decoding.content_sum(decoding._read(top / paths[row])), len(paths), ""))

    with tempfile.TemporaryDirectory() as root:
        steps: dict[str, Callable[[], object]] = {
            "read, sum": read_and_sum,
            "read, sum, decode": lambda: decoding._decode_all(top, paths, pixels, None),
            "load from the cache": lambda: settings.load(Path(root)),
        }
        with contextlib.redirect_stderr(io.StringIO()):
            settings.load(Path(root))
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
            for _ in range(3):
                for name, step in steps.items():
                    began, cpu_began = time.perf_counter(), time.process_time()
                    step()
                    seconds[name].append((time.perf_counter() - began, time.process_time() - cpu_began))
    size = sum((top / path).stat().st_size for path in paths)
    print(f"{len(paths):,} files, {size / 1e6:.0f} MB")
    for name, taken in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"{name}: {wall:.2f} s, {cpu:.2f} s of CPU")


if __name__ == "__main__":
    main()
