"""Looking at data: sequences as the model sees them, statistics, and sound made of units."""
