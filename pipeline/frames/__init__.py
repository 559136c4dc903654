"""Frames as images, in folders or tars: which there are, and their pixels. Knows no video files."""
