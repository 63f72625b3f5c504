"""Training of text-speech language models (SmolTolk, arXiv 2503.06211) at cluster scale."""

__version__ = "0.1.0"
