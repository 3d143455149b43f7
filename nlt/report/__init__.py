"""Tables and figures out of MLflow: methods against noise, over seeds.

`html`, `plots` and `summary` need matplotlib and are imported where they are used.
"""

from nlt.report.collect import Cell, Comparison, compare
from nlt.report.text import as_csv, as_json, markdown, tables

__all__ = ["Cell", "Comparison", "as_csv", "as_json", "compare", "markdown", "tables"]
