"""The format of the files of both models: safetensors that say what they are, and are checked."""
