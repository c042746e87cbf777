"""Pictures of attention: figures that need matplotlib (``pip install "jattn[plots]"``), and a page that needs nothing.

Nothing here needs a display, and importing it does not import matplotlib.
"""

from jattn.plots.curves import curves as curves
from jattn.plots.heatmaps import heatmaps as heatmaps
from jattn.plots.view import AttentionView as AttentionView
from jattn.plots.view import attention_view as attention_view
