"""Videos of which a part is drawn anew: which part, in whole tokens, and what becomes of it."""
