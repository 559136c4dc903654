"""What a flow would find and take, before it is begun: clips, windows, bytes, time."""
