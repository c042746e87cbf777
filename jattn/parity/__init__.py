"""The port debugger: a PyTorch module and its port to Flax on the same numbers. Where do they first part, and why?

`compare` runs both once, `trajectory` trains both for some steps. Each gives a report that prints as a table, goes to
JSON, and is an assertion in a test. The causes that are tried are listed in `jattn.parity.CAUSES`.

PyTorch is imported when a comparison runs, not before.
"""

from jattn.parity.catalogue import CAUSES
from jattn.parity.cause import Cause
from jattn.parity.report import Report
from jattn.parity.run import compare
from jattn.parity.training import TrajectoryReport, trajectory

__all__ = ["CAUSES", "Cause", "Report", "TrajectoryReport", "compare", "trajectory"]
