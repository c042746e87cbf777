"""Decoding: what a model says after a prompt, token by token."""

from jattn.decoding import processors
from jattn.decoding.attended import Attended, attention_of
from jattn.decoding.beams import BeamsFound, Hypotheses, beam_search
from jattn.decoding.decodable import Decodable, grown, last_of, placed, reordered, repeated, rewound
from jattn.decoding.generation import Generated, Stream, generate, stream
from jattn.decoding.serving import Job, Served, serve
from jattn.decoding.speculative import Speculated, speculate
from jattn.decoding.transcript import Transcript

__all__ = [
    "Attended",
    "BeamsFound",
    "Decodable",
    "Generated",
    "Hypotheses",
    "Job",
    "Served",
    "Speculated",
    "Stream",
    "Transcript",
    "attention_of",
    "beam_search",
    "generate",
    "grown",
    "last_of",
    "placed",
    "processors",
    "reordered",
    "repeated",
    "rewound",
    "serve",
    "speculate",
    "stream",
]
