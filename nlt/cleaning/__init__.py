"""From what a detector found to a clean data set: decisions, the output folder, the review, people's corrections."""

from nlt.cleaning.apply import Applied, apply
from nlt.cleaning.decide import Action, decide
from nlt.cleaning.export import Export, check_export
from nlt.cleaning.folder import check_place
from nlt.cleaning.output import Output, write_output
from nlt.cleaning.sample import Estimate, estimate_rate

__all__ = [
    "Action", "Applied", "Estimate", "Export", "Output", "apply", "check_export", "check_place", "decide",
    "estimate_rate", "write_output",
]  # fmt: skip
