"""What Ctrl-C does while the package is imported. Imports nothing that takes time itself."""

import os
import sys


class Importing:
    """While it lasts, Ctrl-C ends `glmlite` and `python -m glmlite` as it ends a command, without a traceback: the
    package is imported, for a third of a second or more, before either has begun."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            program = os.path.splitext(os.path.basename(sys.argv[0]))[0]
            if program == "glmlite" or (program == "-m" and {"glmlite", "glmlite.serve"} & {*sys.orig_argv}):
                raise SystemExit(130) from None
