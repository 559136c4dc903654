"""The token store: how it looks, who writes it, in which order training reads it; no model."""
