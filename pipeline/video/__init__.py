"""Files of video: which there are, their frames, and how they are cut into clips and written."""
