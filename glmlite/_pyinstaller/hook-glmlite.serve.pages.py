"""A program with a server: its page."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("glmlite.serve", includes=["page/**/*"])
