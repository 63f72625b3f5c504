"""The text-speech language model (SmolTolk, arXiv 2503.06211): `Architecture`, `SmolTolk`, `ModelInputs`."""
