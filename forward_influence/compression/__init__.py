"""Compressing the cache in real generation: a rule, a budget, how it is divided, and when."""

from forward_influence.compression.compressor import NAMED, Compressor, compressor_names, make_compressor
from forward_influence.compression.outcome import Outcome
from forward_influence.compression.schedule import Schedule
from forward_influence.compression.schemes import SCHEMES
from forward_influence.compression.session import CompressedCache, compress
from forward_influence.compression.stats import Event, Stats

__all__ = [
    "NAMED",
    "SCHEMES",
    "CompressedCache",
    "Compressor",
    "Event",
    "Outcome",
    "Schedule",
    "Stats",
    "compress",
    "compressor_names",
    "make_compressor",
]
