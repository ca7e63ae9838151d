"""`glmlite chat`: a conversation in the terminal."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..files import replacing
from . import console, pictures, running, terminal
from .arguments import hint, model_and_text
from .options import Loading, ModelFirst, Sampling, Think, thoughts

HELP = '''\
/clear        forget the conversation (the system message stays)
/system TEXT  set the system message; without TEXT, remove it
/save FILE    save the conversation as JSON
/load FILE    go on with a saved conversation
/image FILE   show it an image with the next message; so does a path dropped into a line
/bye          leave; so do /exit, /quit and Ctrl-D
/help         this list
"""           begins and ends a message of several lines; Alt-Enter begins a new line, too
//...         a message that begins with a slash
What is pasted is one message. Ctrl-C stops an answer.'''
LEAVE = ("/bye", "/exit", "/quit", "/q")
COMMANDS = ("/clear", "/system", "/save", "/load", "/image", "/help", *LEAVE)
# What other chats call them.
OTHERS = {"/?": "/help", "/h": "/help", "/reset": "/clear", "/new": "/clear", "/forget": "/clear", "/read": "/load"}
OTHERS |= {"/img": "/image", "/images": "/image", "/picture": "/image", "/photo": "/image", "/attach": "/image"}
OTHERS |= {"/set": "/system", "/sys": "/system", "/write": "/save", "/stop": "/bye", "/leave": "/bye", "/x": "/bye"}
# Words that were hardly meant for the model.
HINTS = dict.fromkeys(("exit", "quit", ":q", ":q!", ":wq", "exit()", "quit()"), "/bye leaves") | {
    "clear": "/clear forgets the conversation",
    "help": "/help lists the commands",
}


def chat(
    name: ModelFirst = None,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Answer this and leave.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.", show_default=False)
    ] = None,
    image: pictures.Images = None,
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
      glmlite chat glm-4.1v-9b-q4_k_m.gguf --image photo.jpg
    """
    name, prompt = model_and_text(name, prompt)
    if prompt == "-":
        prompt = running.text_of(prompt, None)
    sampling.check()
    typed = prompt is None and sys.stdin.isatty()
    with ExitStack() as stack:
        read = stack.enter_context(terminal.reader()) if typed else lambda _: input()
        model = stack.enter_context(running.opened(name, loading, hint("chat", name, prompt)))
        if model.chat_format is None:
            raise ValueError(f"{name}: has no chat template; `run` continues a text with it")
        session = Session(model, system, {**thoughts(think), **sampling.given()})
        session.show(image or [])
        if prompt is not None:
            answer = session.answer(prompt)
            raise typer.Exit(130 if answer.stopped else 0)
        converse(session, read, typed)


class Session:
    """A conversation: the messages so far, whose last is always the assistant's (or the system's)."""

    def __init__(self, model: Any, system: str | None, settings: dict[str, Any]):
        self.model = model
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []  # of the next message
        if system:
            self.set_system(system)

    def answer(self, text: str) -> running.Answer:
        """Streams the answer to a message and remembers both, unless Ctrl-C came before the first word."""
        messages = [*self.messages, {"role": "user", "content": pictures.content(self.images, text)}]
        answer = running.stream(self.model.chat_stream, messages, **self.settings)
        if answer.text or not answer.stopped:
            self.messages = [*messages, {"role": "assistant", "content": answer.text}]
            self.images = []
        return answer

    def show(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Images for the next message: all of them, or none where one is none."""
        images = []
        for path in paths:
            image, tokens = pictures.part(self.model, path)
            images.append(image)
            console.note(f"[{image['name']}: {tokens} tokens]")
        self.images += images

    def clear(self) -> None:
        self.images = []
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def save(self, path: str) -> None:
        text = json.dumps(pictures.as_saved(self.messages), ensure_ascii=False, indent=1) + "\n"
        with replacing(path) as file:
            file.write(text.encode())

    def load(self, path: str) -> None:
        from ..chat.messages import check

        try:
            messages = check(json.loads(Path(path).read_text(encoding="utf-8-sig")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}, should be a conversation that /save wrote") from None
        if messages[-1]["role"] == "user":
            raise ValueError(f"{path}: ends with a question, should end with an answer")
        self.messages = messages

    def command(self, line: str) -> None:
        """Does what a line that begins with a slash says."""
        name, _, argument = line.partition(" ")
        name, argument = name.lower(), argument.strip()
        if name == "/clear":
            self.clear()
        elif name == "/system":
            self.set_system(argument)
        elif name in ("/save", "/load") and argument:
            path = pictures.named(argument)
            self.save(path) if name == "/save" else self.load(path)
            console.note(f"{len(self.messages)} messages")
        elif name == "/image" and argument:
            self.show(pictures.paths(argument))
        elif name in ("/save", "/load", "/image"):
            raise ValueError(f"{name}: needs a file name")
        elif name == "/help":
            console.note(HELP)
        else:
            near = [OTHERS[name]] if name in OTHERS else get_close_matches(name, COMMANDS, 2)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ValueError(f"{name}: no such command{meant}; /help lists them, // begins a message with a slash")


def converse(session: Session, read: Callable[[str], str], typed: bool) -> None:
    """Takes messages and commands until the end of the input. In a terminal, Ctrl-C ends an answer, not the session;
    what is piped in goes on after an error, too, and the exit code tells of it."""
    failed = False
    with Interrupts() if typed else nullcontext() as interrupts:
        if typed:
            console.note("Ctrl-C stops an answer, /bye or Ctrl-D leaves, /help lists the commands.")
        going = True
        while going:
            try:
                if interrupts is not None:
                    interrupts.heard = True
                try:
                    going = _take(session, read, typed)
                except (OSError, ValueError) as error:
                    if isinstance(error, BrokenPipeError):
                        raise
                    console.error(error)
                    failed = True
            except KeyboardInterrupt:
                if not typed:
                    raise
                console.note("[/bye or Ctrl-D leaves]")
        if typed:
            console.note("")
    if failed and not typed:
        raise typer.Exit(1)


def _take(session: Session, read: Callable[[str], str], typed: bool) -> bool:
    """Takes one message or command; whether another may follow."""
    message = next_message(read)
    if message is None:
        return False
    text, plain = message
    if typed and plain:
        text, images = pictures.dropped(text)
        session.show(images)
    word = text.strip().lower() if plain else ""
    if word.partition(" ")[0] in LEAVE:
        return False
    if typed and word in HINTS:
        console.note(f'[{HINTS[word]}; """{word}""" says it to the model]')
    elif word.startswith("/") and not word.startswith("//"):
        session.command(text.strip())
    elif text.strip():
        answer = session.answer(text.lstrip().removeprefix("/") if word.startswith("//") else text)
        if answer.stopped and not typed:
            raise typer.Exit(130)
        console.note("[stopped]" if answer.stopped else f"[{running.speed(answer.stats)}]")
    return True


class Interrupts:
    """Ctrl-C in a conversation: a KeyboardInterrupt, and no other until `heard` is set again, so that what is done
    about one is not interrupted by the next."""

    def __init__(self) -> None:
        self.heard = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        self._before = signal.signal(signal.SIGINT, self._strike)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _strike(self, number: int, frame: object) -> None:
        if self.heard:
            self.heard = False
            raise KeyboardInterrupt


class Message(NamedTuple):
    """plain: it is a line as it was typed, so it may be a command; else a paste, or what was in quotes."""

    text: str
    plain: bool


def next_message(read: Callable[[str], str]) -> Message | None:
    '''What is typed or pasted next, or what stands between two """; None at the end of the input. Raises ValueError
    where it ends between them.'''
    quotes = '"""'
    parts: list[str] = []
    try:
        text = read("> ")
        if "\n" in text:  # pasted: quotes in it are its own, but for those around all of it
            whole = text.startswith(f"{quotes}\n") and text.rstrip().endswith(f"\n{quotes}")
            inside = text.strip().removeprefix(quotes).removesuffix(quotes).strip("\n")
            return Message(inside if whole else text, plain=False)
        if not text.startswith(quotes):
            return Message(text, plain=True)
        parts.append(text.removeprefix(quotes))
        while not parts[-1].rstrip().endswith(quotes):
            parts.append(read(". "))
    except EOFError:
        if parts:
            raise ValueError(f"the message that {quotes} begins has no end") from None
        return None
    return Message("\n".join(parts).rstrip().removesuffix(quotes).strip("\n"), plain=False)
