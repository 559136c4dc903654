"""Runs and tokenizers for others: what is pushed, its card, and what is believed of it."""
