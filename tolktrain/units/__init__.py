"""Speech tokenizers: from sound to discrete units and, where possible, back."""
