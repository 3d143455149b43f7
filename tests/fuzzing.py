"""What the fuzz tests share: how a case is run and counted, what a refusal must look like, and bad raw material.

Every run of a suite tries the same cases, so that it never flakes. `NLT_FUZZ_RANDOM=1` draws new ones, to explore;
hypothesis prints the smallest case that fails, which then becomes a named test beside the code it is about.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reliability import tell

SECONDS = 60  # a case that takes longer hangs; the slowest makes a database, seconds on a busy machine
LONGEST = 700  # characters in a refusal: one sentence, shortened around what the user gave


def sizes(default: int, slow: int) -> pytest.MarkDecorator:
    """Run a test with `default` cases in every suite and with `slow` more in the slow one."""
    return pytest.mark.parametrize("cases", [default, pytest.param(slow, marks=pytest.mark.slow)])


def fuzz(kind: str, cases: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Hold `check` against that many cases, none of which may hang, and count them in the file of NLT_RELIABILITY."""
    done = 0

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize="NLT_FUZZ_RANDOM" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def run(case: Any) -> None:
        nonlocal done
        with no_hang():
            check(case)
        done += 1

    run()
    assert done >= cases, f"only {done} cases: the strategy is exhausted"
    tell(what="fuzzed", kind=kind, cases=done)


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise AssertionError(f"hangs: not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_one_sentence(text: str, *names: str) -> None:
    """A refusal is one printable line of a sensible length that names the place and shows nothing of our insides."""
    assert text.isprintable() and text.strip() == text, f"not one printable line: {text!r}"
    assert 10 < len(text) <= LONGEST, f"{len(text)} characters: {text}"
    inside = re.search(
        r"Traceback|For further information|\[type=|pydantic|validation error|<class|object at 0x",
        text,
    )
    assert not inside, f"shows {inside[0]}: {text}"
    for name in names:
        assert name in text, f"does not name {name}: {text}"


# ---- raw material ----

NASTY_TEXT = [
    "", " ", "\n", "a\nb", "\r\n", "\t", "\x1b[31mred", "\x07", "\u202eltr", "\u200b", "\ufeff", "مرحبا", "日本語", "🙂", "e\u0301",
    "%s%n", "{0}", "$(id)", "`id`", "'", '"', "\\", "../../etc/passwd", "/dev/null", "~", "~nobody-here", "-", "--", "-x",
    "nan", "inf", "1e999", "null", "true", "[red]", "None", "a" * 300, "a" * 100_000, "\u0300" * 500,
]  # fmt: skip
NASTY_NUMBERS = [
    0, -1, 1, 2, 3, 7, 8, 100, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-9,
    5e-324, 1e-300, 1e16, 1e300, 1e308, -1e308,
]  # fmt: skip


@st.composite
def corrupted(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with one to three kinds of damage: bits flipped, cut off, cut out, filled in, doubled."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "flip", "byte", "cut", "out", "in", "zero", "double"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "out":
                del data[at : at + draw(st.integers(1, 64))]
            case "in":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "zero":
                n = draw(st.integers(1, 64))
                data[at : at + n] = b"\0" * len(data[at : at + n])
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)
