"""Make GGUF files from checkpoints. Nothing at run time imports this."""
