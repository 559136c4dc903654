"""Which windows there are, their pixels, and their tokens: where frames and the store meet."""
