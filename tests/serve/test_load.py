"""launch/load_test.py, a tenth of it."""

import sys
from pathlib import Path

from serving import running

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))
import load_test  # noqa: E402


def test_a_tenth_of_the_load(tiny_checkpoint, tiny_captioner, tmp_path):
    clips = load_test.write_clips(tmp_path)
    clip = dict(frames=4, min_pixels=784, max_pixels=12544)
    captions = [one.caption for one in tiny_captioner.caption(clips, max_new_tokens=16, **clip)]
    with running(tiny_checkpoint, tmp_path, "--workers", "2") as served:
        client = load_test.Client(served.address, clips, captions, new_tokens=16)
        done = load_test.run(client, requests=50, clients=16, broken=0.05, vanish=0.05, evidence=1)
        assert done.faults() == []
        kinds = [one.kind for one in done.sent]
        told = kinds.count("evidence")
        assert told > 0
        assert f"; beside {told} with evidence, " in done.line()
        assert len(kinds) - told == 50
        assert min(kinds.count(kind) for kind in ("broken", "gone")) > 1
        assert "16 clients: " in done.line()
        assert load_test.end(served, client, limit=30.0) == []
    assert "Traceback" not in served.log.read_text()
