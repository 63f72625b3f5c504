"""Analyses of representations: text against speech, layer by layer, on the same aligned words."""
