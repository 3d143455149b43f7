"""Images to features, once: a backbone sees each image, and what it says of it is kept in parts by the images' content.

N images, B of them in a batch, S x S pixels, D features. Images come as uint8, features are half floats.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nlt.backbones import AnyBackbone, Backbone, Encoder, Lite0, Pixels, Timm, parse
from nlt.checkpoint import write_whole
from nlt.data.decoding import centre_square, channels_first, content_sum, rgb_image

__all__ = [
    "AnyBackbone",
    "Backbone",
    "Lite0",
    "Maker",
    "Pixels",
    "Timm",
    "encode_batches",
    "extract",
    "of_images",
    "parse",
    "part_name",
    "seconds_for",
]

FORMAT = 1  # of the parts on the disk, and of how features are made of pixels
PART = 1024  # images to a file of the cache
BATCH = 64  # images at a time; parts are multiples of it, so that a part's bytes do not depend on what lies around it
PROBED = 32  # images that tell how long all will take
Read = Callable[[int, int], NDArray[np.uint8]]
"""read(first, last): images_B3SS of the rows first .. last - 1, decoded at the backbone's side."""
Maker = Callable[[AnyBackbone, Read, Sequence[tuple[int, int]]], Iterator[tuple[int, NDArray[np.float16]]]]
"""make(backbone, read, spans): what is kept of the rows first .. last - 1 of each span, whole or in pieces and in any
order: the first row of each piece, and the piece."""


def extract(
    backbone: AnyBackbone,
    read: Read,
    sums: Sequence[bytes],
    cache: Path | None,
    *,
    device: torch.device | str = "cpu",
    encoder: Callable[[], Encoder] | None = None,
    maker: Maker | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> NDArray[np.float16]:
    """Return features_ND of N images, those that were made before from the cache.

    An interrupt or a crash keeps the parts that are finished; a damaged part is made again. Images of the next batch
    are decoded in a thread while the network sees one.

    Args:
        backbone: what makes features of images.
        read: gives the images of some rows, decoded at `backbone.side()`; called for rows whose features are not kept.
        sums: N SHA-256 sums of the images' content, by which they are known again.
        cache: folder for the parts, made if it is missing; None to keep nothing.
        device: where the network runs.
        encoder: gives the network, ready to be applied, where it may be loaded already; by default the backbone's.
        maker: makes features instead, on other machines; by default they are made here.
        progress: told how many of the N images are done, after each batch.
        note: told in a sentence what went wrong with the cache; the features are made all the same.

    Raises:
        BadInput: the network or its weights cannot be had, or its features are no finite half floats.
        ValueError: `read` gives anything but the images that were asked for.
    """
    N, on = len(sums), torch.device(device)
    identity = backbone.identity() | {"device": on.type}
    features_ND = np.empty((N, 0), np.float16)
    left: dict[int, int] = {}  # of each part: how many rows are missing
    done = 0
    for first in range(0, N, PART):
        rows = min(PART, N - first)
        part_BD = _load(cache, part_name(identity, sums[first : first + PART]), rows)
        if part_BD is None:
            left[first] = rows
        else:
            features_ND = _put(features_ND, first, part_BD)
            done += rows
    progress(done, N)
    spans = [(first, first + rows) for first, rows in left.items()]
    if maker is None:
        made = _make_here(backbone, read, spans, encoder or (lambda: backbone.encoder(on)))
    else:
        made = maker(backbone, read, spans)
    noted = False
    for begin, piece_BD in made:
        features_ND = _put(features_ND, begin, piece_BD)
        done += len(piece_BD)
        progress(done, N)
        first = begin // PART * PART
        left[first] -= len(piece_BD)
        if left[first]:
            continue
        try:
            _keep(cache, part_name(identity, sums[first : first + PART]), features_ND[first : first + PART])
        except OSError as error:
            if not noted:
                note(f"features are not kept in {cache} ({error.strerror or error}): the next call makes them again.")
            noted = True
    return backbone.finish(features_ND)


def of_images(
    backbone: AnyBackbone,
    images_NCHW: NDArray[np.uint8],
    cache: Path | None,
    *,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda sentence: None,
) -> NDArray[np.float16]:
    """Return features_ND of images in memory, as `extract`; C is 1 or 3, and not square images lose their margins.

    Raises:
        BadInput: as `extract`.
    """
    side = backbone.side()

    def read(first: int, last: int) -> NDArray[np.uint8]:
        squares = (centre_square(rgb_image(image_CHW), side) for image_CHW in images_NCHW[first:last])
        return np.stack([channels_first(square) for square in squares])

    sums = [content_sum(image_CHW.tobytes()) for image_CHW in images_NCHW]
    return extract(backbone, read, sums, cache, device=device, note=note)


def seconds_for(
    backbone: AnyBackbone,
    read: Read,
    sums: Sequence[bytes],
    cache: Path | None,
    *,
    device: torch.device | str = "cpu",
    encoder: Callable[[], Encoder] | None = None,
) -> float:
    """Return about how many seconds `extract` will take, from a trial with some of the images that are not kept; 0 if
    all are. The trial takes about a second, and as long as it takes to load the network by `encoder`, as `extract`.

    Raises:
        BadInput: as `extract`.
    """
    on = torch.device(device)
    identity = backbone.identity() | {"device": on.type}
    left = []
    for first in range(0, len(sums), PART):
        part = sums[first : first + PART]
        if cache is None or not (cache / part_name(identity, part)).is_file():
            left += [(first, len(part))]
    if not left:
        return 0.0
    encode = encoder() if encoder is not None else backbone.encoder(on)
    first, length = left[0]
    began = time.perf_counter()
    images_B3SS = read(first, first + min(length, PROBED))
    reading = time.perf_counter() - began
    encode(images_B3SS)  # the first pass prepares kernels and memory
    began = time.perf_counter()
    encode(images_B3SS)
    seeing = time.perf_counter() - began
    # On a CPU decoding and the network share the cores, so their times add up.
    each = (reading + seeing if on.type == "cpu" else max(reading, seeing)) / len(images_B3SS)
    return each * sum(rows for _, rows in left)


def part_name(identity: dict[str, Any], sums: Sequence[bytes]) -> str:
    """Return what the file of a part is called: by all that decides its features."""
    digest = hashlib.sha256(json.dumps([FORMAT, identity], sort_keys=True).encode())
    for content in sums:
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"features-{FORMAT}-{digest.hexdigest()}.npy"


def encode_batches(
    encode: Encoder, read: Read, side: int, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Yield the first row of each batch of the spans, and what is kept of the batch; the next is read meanwhile.

    Args:
        encode: of the backbone.
        read: as for `extract`.
        side: of the images, in pixels.
        spans: first row and the one after the last; whole parts, so that batches are the same wherever they are made.
    """
    batches = [(begin, min(begin + BATCH, last)) for first, last in spans for begin in range(first, last, BATCH)]
    pool = ThreadPoolExecutor(1, "decoding")
    try:
        ahead = pool.submit(read, *batches[0])
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            images_B3SS = ahead.result()
            if following is not None:
                ahead = pool.submit(read, *following)
            wanted = (batch[1] - batch[0], 3, side, side)
            if images_B3SS.shape != wanted or images_B3SS.dtype != np.uint8:
                raise ValueError(f"read{batch} gave {images_B3SS.dtype} of {images_B3SS.shape}, not uint8 of {wanted}")
            yield batch[0], encode(images_B3SS)
    finally:
        pool.shutdown(cancel_futures=True)


def _make_here(
    backbone: AnyBackbone, read: Read, spans: Sequence[tuple[int, int]], encoder: Callable[[], Encoder]
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    if spans:  # else no network is loaded
        yield from encode_batches(encoder(), read, backbone.side(), spans)


def _put(features_ND: NDArray[np.float16], first: int, part_BD: NDArray[np.float16]) -> NDArray[np.float16]:
    """Write a part into its rows, and return the array: a new one before the first part, which tells what D is."""
    if features_ND.shape[1] != part_BD.shape[1]:
        features_ND = np.empty((len(features_ND), part_BD.shape[1]), np.float16)
    features_ND[first : first + len(part_BD)] = part_BD
    return features_ND


def _keep(cache: Path | None, name: str, part_BD: NDArray[np.float16]) -> None:
    """Write a part: an .npy file that any reader takes, with its SHA-256 behind the last number."""
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    payload = io.BytesIO()
    np.save(payload, part_BD, allow_pickle=False)
    write_whole(cache / name, payload.getbuffer(), hashlib.sha256(payload.getbuffer()).digest())


def _load(cache: Path | None, name: str, rows: int) -> NDArray[np.float16] | None:
    """Return the part of a file, None if there is none or it is damaged."""
    if cache is None:
        return None
    try:
        raw = (cache / name).read_bytes()
        if hashlib.sha256(raw[:-32]).digest() != raw[-32:]:
            return None
        part_BD: NDArray[np.float16] = np.load(io.BytesIO(raw), allow_pickle=False)
    except (OSError, ValueError):
        return None
    fits = part_BD.ndim == 2 and part_BD.dtype == np.float16 and len(part_BD) == rows
    return part_BD if fits else None
