"""Numbers about pictures, tokens and samples."""
