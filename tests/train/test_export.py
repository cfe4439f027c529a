"""ugc_jax.train.export: to where the files go. (What is in them: test_sft.py.)"""

from etils import epath

from ugc_jax.train import export


def test_a_local_target_is_written_itself(tmp_path):
    with export._local(epath.Path(tmp_path / "model")) as folder:
        assert folder == tmp_path / "model"


def test_a_remote_target_gets_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "is_remote", lambda _: True)
    target = epath.Path(tmp_path / "model")
    for text in ("first", "second"):
        with export._local(target) as folder:
            folder.mkdir()
            assert folder != tmp_path / "model"
            (folder / "config.json").write_text(text)
        assert (tmp_path / "model" / "config.json").read_text() == text
    assert not folder.exists()
