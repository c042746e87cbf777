"""Heads: how much each one matters, and models without those that don't.

    measured = jattn.heads.importance(model, data, loss=loss, batch_size=64)    # loss as in jattn.training.fit
    print(measured)                                                             # and measured.plot()
    smaller = jattn.heads.prune(model, measured.lowest(0.5, "gradient"))        # half of all heads

`METRICS` says what each measure means and where it misleads. `gated` switches heads off without removing them, `refine`
prunes in rounds of fine-tuning, `speed` times models in turn, and `study` is the whole experiment, with its report.
"""

from jattn.heads.gates import counts as counts
from jattn.heads.gates import gated as gated
from jattn.heads.gates import layers as layers
from jattn.heads.importance import importance as importance
from jattn.heads.metrics import METRICS as METRICS
from jattn.heads.metrics import table as table
from jattn.heads.pruning import prune as prune
from jattn.heads.result import Importance as Importance
from jattn.heads.study import Option as Option
from jattn.heads.study import Study as Study
from jattn.heads.study import study as study
from jattn.heads.trials import Candidate as Candidate
from jattn.heads.trials import best_metric as best_metric
from jattn.heads.trials import cross_validate as cross_validate
from jattn.heads.trials import refine as refine
from jattn.heads.trials import speed as speed
from jattn.heads.trials import try_out as try_out
