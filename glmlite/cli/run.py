"""`glmlite run`: one prompt, one answer."""

from typing import Annotated, Any

import typer

from . import console, pictures, running
from .arguments import hint, model_and_text
from .options import File, Loading, ModelFirst, Sampling, Stats, Think, thoughts


def run(
    name: ModelFirst = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt.", show_default=False)] = None,
    file: File = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.", show_default=False)
    ] = None,
    image: pictures.Images = None,
    think: Think = None,
    stats: Stats = False,
    loading: Loading = Loading(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
) -> None:
    """Answer one prompt and write the answer to stdout as it comes.

    A chat model is asked through its chat template; --raw continues the text instead, as models without a template
    always do.

    \b
    Examples:
      glmlite run "What is the capital of France?"
      glmlite run smollm2 "Name three colours."
      glmlite run model.gguf -f question.txt --temperature 0 --stats
      glmlite run glm-4.1v-9b-q4_k_m.gguf "What is this?" --image photo.jpg
      cat notes.txt | glmlite run model.gguf --system "Summarize what you are given." > summary.txt
      glmlite run model.gguf --raw "def fibonacci(n):" -n 100
    """
    given_options = (system is not None, "--system"), (think is not None, "--think and --no-think"), (image, "--image")
    for given, option in given_options:
        if raw and given:
            raise typer.BadParameter(f"--raw goes without the chat template, and so without {option}")
    sampling.check()
    name, prompt = model_and_text(name, prompt)
    unless = hint("run", name, prompt)
    text = running.asked(name, prompt, file, unless)

    with running.opened(name, loading, unless) as model:
        if raw or model.chat_format is None:
            if system is not None:
                raise ValueError(f"{name}: has no chat template, so there is no place for a system message")
            if think is not None:
                raise ValueError(f"{name}: has no chat template, which --think and --no-think are for")
            if image:
                raise ValueError(f"{name}: has no chat template, so there is no place for an image")
            answer = running.stream(model.stream, text, **sampling.given())
        else:
            images = [pictures.part(model, path)[0] for path in image or []]
            messages: list[dict[str, Any]] = [{"role": "user", "content": pictures.content(images, text)}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            answer = running.stream(model.chat_stream, messages, **thoughts(think), **sampling.given())
        if stats:
            console.note(running.speed(answer.stats))
    raise typer.Exit(130 if answer.stopped else 0)
