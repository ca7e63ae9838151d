"""`glmlite serve`: answer the programs people have."""

import typer

from ..options import Loading, Serving
from . import console
from .options import ModelFirst, find


def serve(
    name: ModelFirst = None,
    serving: Serving = Serving(),  # noqa: B008
    loading: Loading = Loading(),  # noqa: B008
) -> None:
    """Serve a model to other programs: the APIs of OpenAI, Anthropic and Ollama, and a page for people.

    \b
    Examples:
      glmlite serve
      glmlite serve glm-4-9b-chat-q4_k_m.gguf --context 16384
      glmlite serve glm-ocr-q8_0.gguf --mmproj mmproj-glm-ocr-q8_0.gguf --context 16384
      glmlite serve --models ~/models --port 11434
      glmlite serve model.gguf --host 0.0.0.0 --api-key "$(cat key)"
    """
    from ..serve import command

    if serving.models is not None and name is not None:
        raise typer.BadParameter("a MODEL and --models, expected one of them")
    if serving.models is not None and loading.mmproj is not None:
        raise typer.BadParameter("--mmproj and --models, expected one of them: each takes the mmproj file beside it")
    command.serve(name if name is None else find(name), serving, loading.given(), console)
