"""Run the GLM family of language models on the machine you have."""
