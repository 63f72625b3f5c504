"""Quality of generated speech, judged by its transcripts. `tolktrain.evaluate.generation.run` is the entry point."""
