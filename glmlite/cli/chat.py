"""`glmlite chat`: a conversation in the terminal."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import replacing
from . import console, running
from .arguments import hint, model_and_text
from .options import Loading, ModelFirst, Sampling, Think, template

HELP = '''\
/clear        forget the conversation (the system message stays)
/system TEXT  set the system message; without TEXT, remove it
/save FILE    save the conversation as JSON
/load FILE    go on with a saved conversation
/help         this list
"""           begins and ends a message of several lines
//...         a message that begins with a slash
Ctrl-C stops an answer, Ctrl-D leaves.'''


def chat(
    name: ModelFirst = None,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Answer this and leave.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.", show_default=False)
    ] = None,
    think: Think = None,
    loading: Loading = Loading(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
) -> None:
    """Talk with a model. /help lists what else can be typed.

    \b
    Examples:
      glmlite chat
      glmlite chat "你好"
      glmlite chat smollm2
      glmlite chat glm-4-9b-chat-q4_k_m.gguf --system "Answer in one sentence." --context 8192
      glmlite chat chatglm3-6b-q4_k_m.gguf "你好"
    """
    name, prompt = model_and_text(name, prompt)
    with running.opened(name, loading, hint("chat", name, prompt)) as model:
        if model.chat_format is None:
            raise ValueError(f"{name}: has no chat template; `run` continues a text with it")
        session = Session(model, system, {**template(think), **sampling.given()})
        if prompt is not None:
            answer = session.answer(prompt)
            raise typer.Exit(130 if answer.stopped else 0)
        converse(session)


class Session:
    """A conversation: the messages so far, whose last is always the assistant's (or the system's)."""

    def __init__(self, model: Any, system: str | None, settings: dict[str, Any]):
        self.model = model
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        if system:
            self.set_system(system)

    def answer(self, text: str) -> running.Answer:
        """Streams the answer to a message and remembers both, unless Ctrl-C came before the first word."""
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = running.stream(self.model.chat_stream, messages, strip=True, **self.settings)
        if answer.text or not answer.stopped:
            self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def clear(self) -> None:
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def save(self, path: str) -> None:
        text = json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n"
        with replacing(path) as file:
            file.write(text.encode())

    def load(self, path: str) -> None:
        from ..chat.messages import check

        try:
            messages = check(json.loads(Path(path).read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}, should be a conversation that /save wrote") from None
        if messages[-1]["role"] == "user":
            raise ValueError(f"{path}: ends with a question, should end with an answer")
        self.messages = messages

    def command(self, line: str) -> None:
        """Does what a line that begins with a slash says."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/clear":
            self.clear()
        elif name == "/system":
            self.set_system(argument)
        elif name in ("/save", "/load") and argument:
            self.save(argument) if name == "/save" else self.load(argument)
            console.note(f"{len(self.messages)} messages")
        elif name in ("/save", "/load"):
            raise ValueError(f"{name}: needs a file name")
        elif name == "/help":
            console.note(HELP)
        else:
            raise ValueError(f"{name}: no such command; /help lists them, // begins a message with a slash")


def converse(session: Session) -> None:
    """Reads messages and commands until the end of the input. In a terminal, Ctrl-C ends an answer, not the session."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() a history and line editing
        console.note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
    while True:
        try:
            line = read_message(typed)
            if line is None:
                break
            if line.startswith("/") and not line.startswith("//"):
                session.command(line)
            elif line.strip():
                answer = session.answer(line.removeprefix("/"))
                if answer.stopped and not typed:
                    raise typer.Exit(130)
                console.note("[stopped]" if answer.stopped else f"[{running.speed(answer.stats)}]")
        except KeyboardInterrupt:
            if not typed:
                raise
            console.note("[Ctrl-D leaves]")
        except (OSError, ValueError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            console.error(error)
    if typed:
        console.note("")


def read_message(typed: bool) -> str | None:
    '''The next line, or what stands between two """; None at the end of the input.'''
    quotes = '"""'
    try:
        line = input("> " if typed else "")
        if not line.startswith(quotes):
            return line
        lines = [line.removeprefix(quotes)]
        while not lines[-1].endswith(quotes):
            lines.append(input(". " if typed else ""))
    except EOFError:
        return None
    return "\n".join(lines).removesuffix(quotes).strip("\n")
