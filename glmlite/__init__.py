"""Run the GLM family of language models on the machine you have."""

from ._importing import Importing

with Importing():
    import logging

    from ._package import VERSION, find_modules
    from .bulk import batch
    from .cancel import Cancel
    from .errors import Busy, Cancelled, Closed, ContextOverflow, FormatError
    from .generate import CallPart, Completion, Generation, Logprob, Piece, Progress, ToolCall
    from .hf import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
        StoppingCriteria,
        StoppingCriteriaList,
        TextIteratorStreamer,
        TextStreamer,
    )
    from .infill import Infill
    from .loading import aload, load
    from .model import Model
    from .parameters import Parameters
    from .scheduler import SchedulerStatus, Stats

# A library does not print: without this, warnings go to stderr in a program that has not set up logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())
find_modules(__path__)

__version__ = VERSION

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoTokenizer",
    "Busy",
    "CallPart",
    "Cancel",
    "Cancelled",
    "Closed",
    "Completion",
    "ContextOverflow",
    "FormatError",
    "Generation",
    "GenerationConfig",
    "Infill",
    "LogitsProcessor",
    "LogitsProcessorList",
    "Logprob",
    "Model",
    "Parameters",
    "Piece",
    "Progress",
    "SchedulerStatus",
    "Stats",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
    "ToolCall",
    "aload",
    "batch",
    "load",
]
