"""The benchmark: that it runs, what it prints, and the ratios it takes."""

import json

import pytest
from click.testing import CliRunner

from nlt.bench import Bench
from nlt.cli import main


def test_shares_and_ratios_by_hand():
    """A width of 100 FLOP an image on a device of 1000 FLOP/s in one round and 2000 in the other."""
    measured = Bench({"rounds": 2, "device_name": "here", "precision": "fp32", "torch": "x"}, flops={0.5: 100})
    measured.matrix_rate = {0.5: [1000.0, 2000.0], 1.0: [4000.0]}
    measured.rates[0.5, "compute bound", 16] = [4.0, 5.0, 4.0, 8.0]  # twice a round
    measured.rates[0.5, "epoch", 16] = [3.0, 6.0]
    measured.shares[0.5, "epoch", 16] = [0.75, 0.95]
    measured.rates[0.5, "evaluation", 500] = [50.0, 60.0]
    measured.rates[0.5, "conventional loop", 16] = [1.0, 2.0]
    measured.flops[1.0] = 400
    measured.rates[1.0, "conventional loop", 16] = [5.0]
    bound, epoch, evaluation, conventional, wide = measured.rows()
    assert bound["times_conventional"] == pytest.approx(4.0)  # the median of 4, 5, 4 / 2, 8 / 2
    assert bound["of_bound"] is None
    assert epoch["images_per_second"] == 4.5
    assert epoch["spread"] == (3.0, 6.0)
    assert epoch["of_bound"] == pytest.approx(0.85)
    assert epoch["times_conventional"] == 3.0
    assert epoch["of_matrix_rate"] == pytest.approx(0.3)
    assert (evaluation["times_conventional"], evaluation["of_matrix_rate"]) == (None, None)
    assert conventional["times_conventional"] == 1.0
    assert wide["of_matrix_rate"] == 0.5
    assert measured.json()["matrix_flops_per_second"] == {"median": 2000.0, "spread": (1000.0, 4000.0)}


def test_a_smoke_test_takes_no_sizes():
    result = CliRunner().invoke(main, ["bench", "--smoke", "--rounds", "2"])
    assert (result.exit_code, "--smoke has sizes of its own" in result.output) == (2, True)


@pytest.mark.parametrize(("option", "value"), [("--width", "nan"), ("--width", "0"), ("--images", "31")])
def test_a_size_that_is_none_is_refused(option, value):
    result = CliRunner().invoke(main, ["bench", "--smoke", option, value])
    assert result.exit_code == 2
    assert option in result.output


@pytest.mark.slow  # README's command is run by the default suite, this looks at its numbers
def test_smoke():
    result = CliRunner().invoke(main, ["bench", "--smoke", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "of the bound" in result.output
    measured = json.loads(result.stdout.splitlines()[-1])
    assert {row["what"] for row in measured["rows"]} >= {"compute bound", "epoch", "conventional loop", "evaluation"}
    # Forward, and backward with respect to weights and (but for the first layer) images: just under three times forward.
    assert 0 < measured["flops_per_image"]["0.03"] < measured["flops_per_image"]["0.05"] < 1e9
    assert measured["matrix_flops_per_second"]["median"] > 0
