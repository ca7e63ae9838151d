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
    language: Annotated[
        str | None,
        typer.Option(
            "--language", metavar="NAME", help="Of a file of code, as CodeGeeX4 is told it: Python.", show_default=False
        ),
    ] = None,
    stats: Stats = False,
    loading: Loading = Loading(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
) -> None:
    """Fill in the blanks of a text and print the text.

    A blank is written [MASK] (a few words), [sMASK] (a sentence) or [gMASK] (the rest of the text). The original GLM
    models and ChatGLM-6B were trained for this. CodeGeeX4, and GLM-4.5 and later, fill one [MASK] in code, and
    CodeGeeX4 is told the name of --file. Others refuse. The likeliest tokens are taken unless --temperature is given.

    \b
    Examples:
      glmlite infill "Anna went to the [MASK] to borrow a book."
      glmlite infill glm-10b.gguf "Ng is an adjunct professor at [MASK] (formerly director of its AI Lab)."
      glmlite infill glm-10b-chinese.gguf -f article.txt
      glmlite infill codegeex4-all-9b.gguf -f sort.py --language Python
    """
    name, text = model_and_text(name, text)
    sampling.check(likeliest=True)
    unless = hint("infill", name, text)
    blanked = running.asked(name, text, file, unless)
    with running.opened(name, loading, unless) as model:
        path = None if file is None or str(file) == "-" else file.name
        result = model.infill(blanked, path=path, language=language, **sampling.given())
        console.write(f"{result.text}\n")
        if stats:
            for completion in result.completions:
                console.note(running.speed(completion.stats))
