"""Bytes on a disk or in a bucket: whole or absent."""
