"""Checkpoints by hub name: `zai-org/glm-edge-1.5b-chat`, or `modelscope:ZhipuAI/chatglm3-6b`.

The hubs' own packages download, with their progress bars, resuming, caches, mirrors (`HF_ENDPOINT`) and tokens. They
are imported here only, and only for a name that is no local path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["fetch", "is_name"]

_MODELSCOPE = "modelscope:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Two files of code, because they tell models apart whose configs are alike. They are read as text and never run.
_CODE = ["modeling_chatglm.py", "tokenization_chatglm.py"]
# Nothing in a folder counts but the templates in `additional_chat_templates`; patterns have no "all but this".
_FOLDERS = ["[!a]*/*", "a[!d]*/*", "ad[!d]*/*"]
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja", *_CODE]


def is_name(text: str) -> bool:
    """Whether a source is a hub name: owner/name, and neither it nor a folder called like the owner is there."""
    if text.startswith(_MODELSCOPE):
        return True
    return bool(_NAME.fullmatch(text)) and not Path(text).exists() and not Path(text.partition("/")[0]).is_dir()


def fetch(name: str) -> Path:
    """The folder of a checkpoint, downloaded unless it is in the hub's cache: its safetensors, or its `.bin` files if
    it has none.

    Raises RuntimeError if the hub's package is not installed, and if the download fails.
    """
    download, repository = _downloader(name)
    try:
        folder = download(repository, [*_SMALL, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = download(repository, [*_SMALL, "*.bin"])
    except Exception as error:  # each hub has errors of its own, and of the libraries below it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"{name}: cannot be downloaded: {reason}") from error
    return folder


def _downloader(name: str) -> tuple[Callable[[str, list[str]], Path], str]:
    """A function of (repository, patterns of files), and the repository. Files in subfolders are left out, but for
    templates."""
    if name.startswith(_MODELSCOPE):
        try:
            from modelscope import snapshot_download as modelscope_download
        except ImportError:
            raise RuntimeError(f"{name}: needs the package modelscope: pip install modelscope") from None

        def from_modelscope(repository: str, patterns: list[str]) -> Path:
            return Path(modelscope_download(repository, allow_file_pattern=patterns, ignore_file_pattern=_FOLDERS))

        return from_modelscope, name.removeprefix(_MODELSCOPE)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise RuntimeError(
            f"{name}: no such folder; to download a checkpoint of that name: pip install huggingface_hub"
        ) from None

    def from_hub(repository: str, patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, allow_patterns=patterns, ignore_patterns=_FOLDERS))

    return from_hub, name
