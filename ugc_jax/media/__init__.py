"""Media files -> frames and sound, true to each file's own clock (PyAV, PIL). No jax.

    presets.py    the settings of a clip (ClipSettings) and the named presets
    find.py       command-line words -> files
    clip.py       a file -> Source (probe) -> DecodedClip (read_clip), within the token budget
    container.py  media files opened through FFmpeg: demuxers, streams, errors
    timeline.py   the facts of a file and the times of its pictures, without decoding (Source, scan)
    picture.py    selected pictures of a video: colour.py, orientation.py
    still.py      still and animated images
    sound.py      mono sound

Imports models (the config: pixels and samples of a token) and lower layers; never data.
"""
