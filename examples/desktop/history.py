"""What was said and which models were used, kept between starts in the folder that the platform has for such files."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from platformdirs import user_data_path

Message = dict[str, str]


def place() -> Path:
    return user_data_path("glmlite-desktop", appauthor=False) / "history.json"


@dataclass
class History:
    """models: names or paths for `glmlite.load`, the one that was used last first."""

    models: list[str] = field(default_factory=lambda: ["builtin"])
    messages: list[Message] = field(default_factory=list)

    @classmethod
    def read(cls) -> History:
        """An empty one where there is none, or what is there is none."""
        try:
            kept = json.loads(place().read_text("utf-8"))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in kept["messages"]]
            return cls([str(model) for model in kept["models"]] or ["builtin"], messages)
        except (OSError, ValueError, LookupError, TypeError):
            return cls()

    def use(self, model: str) -> None:
        """Puts a model first."""
        self.models = [model, *(other for other in self.models if other != model)]
        self.write()

    def add(self, question: str, answer: str) -> None:
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self.write()

    def clear(self) -> None:
        self.messages.clear()
        self.write()

    def write(self) -> None:
        """Whole or not at all. A disk that is full is no reason to end the program."""
        path = place()
        new = path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), "utf-8")
            new.replace(path)
