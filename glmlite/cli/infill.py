"""`glmlite infill`: fill in a blank."""

from typing import Annotated

import typer

from . import console, running
from .arguments import hint, model_and_text
from .options import File, Loading, ModelFirst, Sampling, Stats


def infill(
    name: ModelFirst = None,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Text with a blank.", show_default=False)] = None,
    file: File = None,
    stats: Stats = False,
    loading: Loading = Loading(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
) -> None:
    """Fill in the blanks of a text and print the text.

    A blank is written [MASK] (a few words), [sMASK] (a sentence) or [gMASK] (the rest of the text). The original GLM
    models and ChatGLM-6B were trained for this; others refuse. The likeliest tokens are taken unless --temperature
    is given.

    \b
    Examples:
      glmlite infill "Anna went to the [MASK] to borrow a book."
      glmlite infill glm-10b.gguf "Ng is an adjunct professor at [MASK] (formerly director of its AI Lab)."
      glmlite infill glm-10b-chinese.gguf -f article.txt
    """
    name, text = model_and_text(name, text)
    sampling.check(likeliest=True)
    unless = hint("infill", name, text)
    blanked = running.asked(name, text, file, unless)
    with running.opened(name, loading, unless) as model:
        result = model.infill(blanked, **sampling.given())
        console.write(f"{result.text}\n")
        if stats:
            for completion in result.completions:
                console.note(running.speed(completion.stats))
