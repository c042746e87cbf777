"""Heads: how much each one matters, and models without those that don't.

    measured = jattn.heads.importance(model, data, loss=loss, batch_size=64)    # loss as in jattn.training.fit
    print(measured)                                                             # and plot_importance(measured)
    smaller = jattn.heads.prune(model, measured.lowest(0.5, "gradient"))        # half of all heads

`METRICS` says what each measure means and where it misleads. `gated` switches heads off without removing them. With a
`Task`, which says how a model is scored, `try_out` and `cross_validate` compare the measures with random choices,
`refine` prunes in rounds of fine-tuning, and `study` is the whole experiment, for `decision` and `report`; `speed`
times models in turn. `attention_rollout` follows the weights through all layers.
"""

from jattn.heads.cross_validation import cross_validate
from jattn.heads.experiment import study
from jattn.heads.gates import counts, gated, layers
from jattn.heads.measure import importance
from jattn.heads.metrics import METRICS, table
from jattn.heads.paths import attention_rollout
from jattn.heads.pictures import plot_importance
from jattn.heads.pruning import prune
from jattn.heads.records import Candidate, Fold, Importance, Option, Round, Row, Study
from jattn.heads.refinement import refine
from jattn.heads.reporting import decision, report
from jattn.heads.task import Task
from jattn.heads.timing import speed
from jattn.heads.trials import best_metric, try_out

__all__ = [
    "METRICS",
    "Candidate",
    "Fold",
    "Importance",
    "Option",
    "Round",
    "Row",
    "Study",
    "Task",
    "attention_rollout",
    "best_metric",
    "counts",
    "cross_validate",
    "decision",
    "gated",
    "importance",
    "layers",
    "plot_importance",
    "prune",
    "refine",
    "report",
    "speed",
    "study",
    "table",
    "try_out",
]
