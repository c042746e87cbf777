"""Pictures of attention: figures that need matplotlib (``pip install -e ".[plots]"``), and a page that needs nothing.

Nothing here needs a display, and importing it does not import matplotlib.
"""

from jattn.plots.grids import heatmaps
from jattn.plots.lines import curves
from jattn.plots.view import AttentionView, attention_view

__all__ = ["AttentionView", "attention_view", "curves", "heatmaps"]
