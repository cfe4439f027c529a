"""Media files -> frames and sound, true to each file's own clock (PyAV, PIL). No jax.

    presets.py  what a user may choose about a clip (ClipSettings), and the named sets of choices
    find.py     command-line words -> files
    clip.py     a file -> Source (probe) -> DecodedClip (read_clip): the token budget is fitted here
    streams.py  video and sound through FFmpeg: facts, chosen pictures, mono sound

Imports models (the config: pixels and samples of a token) and what lies below; never data.
"""
