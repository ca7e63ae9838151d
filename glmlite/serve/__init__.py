"""A server for the programs people have: the APIs of OpenAI, Anthropic and Ollama, and a page.

    uvicorn.run(glmlite.serve.app(glmlite.load("model.gguf")))

`glmlite serve` is the command. `app` gives a plain ASGI application, which uvicorn or another server runs.
"""

from .app import App, app
from .pool import Pool
from .settings import Settings

__all__ = ["App", "Pool", "Settings", "app"]
