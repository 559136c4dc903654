"""The params.yaml to begin with: what fits one's videos and one's machine."""
