"""Answers of annotators, and a store whose clock a test sets."""

from ugc_jax.annotate.store import Store

SOUND = {
    "voice_source": "Narration",
    "tone": "Neutral",
    "music": True,
    "sounds": [{"what": "a bell", "start": 1.0, "end": 1.5}],
    "caption": "A voice speaks over music, then a bell rings.",
}
PICTURE = {
    "text": ["SALE"],
    "objects": [{"name": "cup", "count": 2, "color": "red", "position": "left"}],
    "background_change": "",
    "caption": "Two red cups stand on the left.",
}
BOTH = {"caption": "A bell rings while two red cups stand on the left."}
VALUES = {"sound": SOUND, "picture": PICTURE, "both": BOTH}


class Clock:
    """Seconds since 1970 that a test moves on."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def project(url: str, clock=None, clips: int = 3, **settings) -> Store:
    """A store with clips that are ready: clip-1.mp4, clip-2.mp4, ..."""
    store = Store(url, settings, clock or Clock())
    store.add_clips([f"clip-{number}.mp4" for number in range(1, clips + 1)])
    for clip, _ in store.waiting():
        store.prepared(clip)
    return store


def annotate(store: Store, annotator: str, values: dict | None = None) -> int:
    """Do one whole clip; return the work."""
    work = store.next_work(annotator)
    for stage, value in (values or VALUES).items():
        store.open_stage(work, annotator, stage)
        base = store.last(work, stage).version
        store.save(work, annotator, stage, base, value, {"caption": 3}, "submit")
    return work
