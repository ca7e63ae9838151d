"""Freezes the sidecar with PyInstaller, under the name with a target triple that Tauri expects.

    python examples/sidecar/freeze.py --out build/sidecar               # one folder
    python examples/sidecar/freeze.py --out build/sidecar --onefile     # one file

Prints the path of the program. Needs `pip install pyinstaller 'glmlite[serve]'`; freeze on the system, and with the
Python, that the program is for.
"""

import argparse
import platform
import sys
from pathlib import Path

from glmlite import _native

NAME = "glmlite"
PACKAGE = Path(_native.__file__).parent  # the installed one, where this is run in the source folder
# What glmlite and its packages can use and a server does not: commands, conversion, hubs.
EXCLUDED = (
    "glmlite.cli",
    "glmlite.convert",
    "glmlite.doctor",
    "glmlite.evaluate",
    "glmlite.quantize",
    "huggingface_hub",
    "psutil",
    "websockets",
    "yaml",
    "matplotlib",
    "numba",
    "numpy.f2py",
    "PIL",
    "prompt_toolkit",
    "rich",
    "tkinter",
    "torch",
    "typer",
)


def triple() -> str:
    """This machine as Rust calls it, which is what Tauri appends to a sidecar's name (`rustc --print host-tuple`)."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "win32":
        return f"{machine}-pc-windows-msvc"
    if sys.platform == "darwin":
        return f"{machine}-apple-darwin"
    return f"{machine}-unknown-linux-{'gnu' if platform.libc_ver()[0] == 'glibc' else 'musl'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/sidecar"), help="the folder to write to")
    parser.add_argument("--onefile", action="store_true", help="one file, which unpacks itself at every start")
    arguments = parser.parse_args()
    import PyInstaller.__main__

    name = f"{NAME}-{triple()}"
    PyInstaller.__main__.run(
        [
            str(Path(__file__).with_name("glmlite_sidecar.py")),
            f"--name={name}",
            "--onefile" if arguments.onefile else "--onedir",
            "--noconfirm",
            "--log-level=WARN",
            f"--distpath={arguments.out}",
            f"--workpath={arguments.out / 'work'}",
            f"--specpath={arguments.out / 'work'}",
            f"--paths={PACKAGE.parent}",
            f"--additional-hooks-dir={PACKAGE / '_pyinstaller'}",
            *(f"--exclude-module={module}" for module in EXCLUDED),
        ]
    )
    program = name + (".exe" if sys.platform == "win32" else "")
    print(arguments.out / program if arguments.onefile else arguments.out / name / program)


if __name__ == "__main__":
    main()
