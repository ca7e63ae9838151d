"""Run the GLM family of language models on the machine you have."""

import logging

from .errors import Cancelled, ContextOverflow, FormatError
from .generate import Completion, Generation, Logprob, Parameters, Piece
from .hf import AutoModelForCausalLM, AutoTokenizer
from .infill import Infill
from .model import Model, load
from .scheduler import Stats

# A library does not print: without this, warnings go to stderr in a program that has not set up logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "Cancelled",
    "Completion",
    "ContextOverflow",
    "FormatError",
    "Generation",
    "Infill",
    "Logprob",
    "Model",
    "Parameters",
    "Piece",
    "Stats",
    "load",
]
