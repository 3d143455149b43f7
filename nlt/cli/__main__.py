"""`python -m nlt.cli`, where the script `nlt` is not installed."""

from nlt.cli import main

main(prog_name="nlt")
