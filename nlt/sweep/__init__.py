"""Many runs: specs x seeds, what of them is done already, and where they run: here, in processes, on a Ray cluster."""

from nlt.sweep.job import Job, in_turn, run_job
from nlt.sweep.plan import Plan, plan
from nlt.sweep.processes import side_by_side

__all__ = ["Job", "Plan", "in_turn", "plan", "run_job", "side_by_side"]
