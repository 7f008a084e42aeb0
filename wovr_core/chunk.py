"""How time is cut into chunks, for everything that decides, dreams or judges.

A policy decides a chunk of actions at once. A world model dreams the frames of one chunk from the episode's first frame
and the last few, so its window is 1 reference + 4 memory + 8 future frames: 13, which a codec with temporal factor 4
holds in 4 latents.
"""

CHUNK = 8  # actions decided at once, and frames dreamt at once
MEMORY = 4  # last frames that a dream is continued from
WINDOW = 1 + MEMORY + CHUNK  # frames
