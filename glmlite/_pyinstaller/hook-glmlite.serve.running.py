"""A program with a server on the network: what that runs under. It is imported by name."""

from PyInstaller.utils.hooks import can_import_module

hiddenimports = [name for name in ["uvicorn"] if can_import_module(name)]
