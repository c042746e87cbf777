"""Decoding, one example and one token at a time."""

from torch_ref.decoding import processors as processors
from torch_ref.decoding import speculative as speculative
from torch_ref.decoding.beams import Hypothesis as Hypothesis
from torch_ref.decoding.beams import beam_search as beam_search
