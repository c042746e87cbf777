"""Parity of the modules of jattn.nn, and what tests of modules share.

That is in a file of its own, as in here the name ``torch`` is the folder's.
"""

from parity_tests.nn.pairs import blank, both, call, call_for_weights, counterpart, randomised

__all__ = ["blank", "both", "call", "call_for_weights", "counterpart", "randomised"]
