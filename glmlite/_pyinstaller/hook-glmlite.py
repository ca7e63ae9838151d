"""Every program: the built-in model."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("glmlite", includes=["data/*"])
# torch's tensors are taken from a program that has torch itself; the hubs' packages download checkpoints to convert.
excludedimports = ["torch", "huggingface_hub", "modelscope"]
