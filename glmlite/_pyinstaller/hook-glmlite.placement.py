"""Every program: the engine for GPUs, where this glmlite has one. It is imported by name."""

from PyInstaller.utils.hooks import can_import_module

hiddenimports = [name for name in ["glmlite._cuda"] if can_import_module(name)]
