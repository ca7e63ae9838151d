"""The exceptions that are not Python's own."""


class FormatError(ValueError):
    """A model file is not what it should be. The message names the file or the tensor and what was expected."""


class Cancelled(RuntimeError):
    """The work was cancelled by its caller. The sequences are as they were before the call."""


class ContextOverflow(ValueError):
    """A prompt, or a prompt and its answer, does not fit the context the model was loaded with.

    tokens: of the prompt; context: how many there may be, with the answer.
    """

    def __init__(self, message: str, tokens: int = 0, context: int = 0):
        super().__init__(message)
        self.tokens = tokens
        self.context = context


class Closed(RuntimeError):
    """The model was closed, before the call or while it ran."""


class Busy(RuntimeError):
    """The model runs and holds in line as many requests as it may: ask again later. waiting: how many are in line."""

    def __init__(self, message: str, waiting: int = 0):
        super().__init__(message)
        self.waiting = waiting
