"""The port debugger: a PyTorch module and its port to Flax on the same numbers. Where do they first part, and why?

`compare` runs both once, `trajectory` trains both for some steps. Each gives a report that prints as a table, goes to
JSON, and is an assertion in a test. The causes that are tried are listed in `jattn.parity.CAUSES`.

PyTorch is imported when a comparison runs, not before.
"""

from jattn.parity.catalogue import CAUSES as CAUSES
from jattn.parity.catalogue import Cause as Cause
from jattn.parity.report import Report as Report
from jattn.parity.run import compare as compare
from jattn.parity.training import TrajectoryReport as TrajectoryReport
from jattn.parity.training import trajectory as trajectory
