"""A page on this machine that shows a model drawing, while it draws; knows no model."""
