"""Whether the machines are fit for a run, before its first step: a sick or slow node is named."""
