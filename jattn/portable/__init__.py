"""Programs that run without jattn: in a process with JAX alone, or in another runtime of StableHLO."""

from jattn.portable.exporting import Exportable, Inputs, export, for_platforms

__all__ = ["Exportable", "Inputs", "export", "for_platforms"]
