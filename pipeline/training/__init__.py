"""A run: the loop and what it leaves behind. Trains anything."""
