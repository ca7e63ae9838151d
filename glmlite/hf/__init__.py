"""The shape of Hugging Face's transformers, so that a script for a GLM changes only its import:

    from glmlite import AutoModel, AutoTokenizer

What scripts pass is taken, or has no meaning here and changes nothing, or is refused by name: docs/transformers.md says
which. Arrays are numpy's, or torch's where torch is asked for or given; torch is imported only then.
"""

from .arrays import BatchEncoding
from .config import AutoConfig
from .generation import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from .model import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, HFModel
from .streamers import TextIteratorStreamer, TextStreamer
from .tokenizer import AutoTokenizer, HFTokenizer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoTokenizer",
    "BatchEncoding",
    "GenerationConfig",
    "HFModel",
    "HFTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
]
