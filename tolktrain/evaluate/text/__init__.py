"""Text tasks of lm-evaluation-harness: what a model kept of the text skills of its backbone."""
