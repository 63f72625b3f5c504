"""Speech tokenizers: from audio to discrete units and, where possible, back."""
