"""ugc_jax.jobs.extract: what it says about a manifest."""

import logging

from ugc_jax import files
from ugc_jax.jobs import extract
from ugc_jax.media.presets import ClipSettings


def test_columns_that_do_not_change_what_is_shown(tmp_path, caplog):
    manifest = tmp_path / "m.jsonl"
    row = {"path": "none.mp4", "caption": "A cat.", "start": 2.0, "fps": 1, "source": "x"}
    files.write_text(manifest, files.to_lines([row]))
    config = extract.ExtractConfig(
        output=str(tmp_path / "records"), clip=ClipSettings(preset="qwen"), workers=1
    )
    with caplog.at_level(logging.WARNING):
        assert extract.main(config, [str(manifest)]) == 1  # there is no such file
    assert "m.jsonl: the columns start, fps do not change what is shown of a clip" in caplog.text
