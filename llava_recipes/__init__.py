"""Train LLaVA-style vision-language models from one validated YAML recipe."""

__version__ = "0.10.0"
