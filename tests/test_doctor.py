"""ugc_jax.doctor and its job: what is found, what is faulty, and that nothing hangs it."""

import contextlib
import json
import shlex
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ugc_jax import cli, doctor, extras
from ugc_jax.doctor import BROKEN, NOTE, OK, Finding


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows the token "right"; its `waits` are seconds before it answers."""

    class Handler(BaseHTTPRequestHandler):
        waits = 0.0

        def do_GET(self):
            time.sleep(Handler.waits)
            is_known = self.headers.get("Authorization") == "Bearer right"
            code = 200 if is_known or "whoami" not in self.path else 401
            body = json.dumps({"name": "ann"} if is_known else {}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield Handler
    server.shutdown()
    server.server_close()


def child(monkeypatch, code: str):
    monkeypatch.setattr(doctor, "_CHILD", [sys.executable, "-c", code])


FACTS = {
    "platform": "cpu", "kind": "cpu", "count": 1, "free": 2**33, "total": 2**33, "cache": "/no",
    "fits": [],
}  # fmt: skip


def test_the_report_of_this_machine(hub, capsys):
    begun = time.monotonic()
    assert cli.run(["doctor", "--json"]) == 0
    assert time.monotonic() - begun < 60
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    parts = [finding["part"] for finding in report["findings"]]
    for part in ("versions", "libraries", "decoders", "devices", "memory", "cache", "disk", "hub"):
        assert part in parts
    by_part = {finding["part"]: finding for finding in report["findings"]}
    assert by_part["devices"]["text"] == "8 x cpu (cpu)"
    assert "is reached without a token" in by_part["hub"]["text"]
    assert [fit["size"] for fit in report["fits"]] == ["3b"] * 5 + ["7b"] * 5
    memory = doctor.host_memory()
    assert report["fits"][0]["has"] * 8 == pytest.approx(memory, rel=0.3)
    for line in report["next"]:
        _, job, *words = shlex.split(line)
        cli.load_job(job).SETTINGS.parse(words)


def test_the_text_has_a_line_for_each_part_a_table_and_what_to_type(hub, monkeypatch, capsys):
    fit = {"work": "caption", "size": "3b", "needs": 9 * 2**30, "has": 2**33, "verdict": "no"}
    rows = [fit | {"work": w, "command": "x"} for w in ("caption", "sft lora", "sft", "grpo")]
    rows.append(rows[0] | {"work": "grpo lora", "verdict": "tight"})
    child(monkeypatch, f"print({json.dumps(json.dumps(FACTS | {'fits': rows}))})")
    assert cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok     devices      1 x cpu (cpu)\n" in out
    assert "(estimates), of 8.0 that are free:" in out
    (row,) = (line for line in out.splitlines() if line.startswith("  3B"))
    assert row.split() == ["3B", "9.0", "(no)", "9.0", "(no)", "9.0", "(no)", "9.0", "(tight)",
                           "9.0", "(no)"]  # fmt: skip
    assert out.endswith(
        "next:\n  ugc-jax init --output runs/tiny\n"
        "  ugc-jax caption --checkpoint runs/tiny clip.mp4\n"
    )


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import time; time.sleep(60)", "no answer from the devices within 1 s"),
        ("raise RuntimeError('no driver')", "jax does not start (RuntimeError: no driver)"),
        ("import os; os.kill(os.getpid(), 11)", "jax does not start (exit status -11)"),
        ("import nowhere", "jax does not start (ModuleNotFoundError: No module named 'nowhere')"),
    ],
)
def test_devices_that_hang_crash_or_fail_are_a_line(hub, monkeypatch, capsys, code, text):
    child(monkeypatch, code)
    assert cli.run(["doctor", "--timeout", "1" if "sleep" in code else "60"]) == 1
    out = capsys.readouterr().out
    assert f"BROKEN devices      {text}; " in out
    assert "ok     decoders" in out
    assert "ok     disk" in out


def test_a_hub_that_does_not_answer_is_a_note(hub, monkeypatch):
    hub.waits = 5.0
    child(monkeypatch, f"print({json.dumps(json.dumps(FACTS))})")
    report = doctor.examine(hub_seconds=0.2)
    (finding,) = (one for one in report.findings if one.part == "hub")
    assert finding.state == NOTE
    assert "local checkpoints work" in finding.text
    assert report.ok


def test_a_look_up_that_never_returns_is_left_alone():
    begun = time.monotonic()
    (finding,) = doctor._in_time(lambda: time.sleep(30), 0.1)()
    assert time.monotonic() - begun < 5
    assert finding[:2] == ("hub", NOTE)
    assert finding.text.startswith("no answer within")


@pytest.mark.parametrize(
    ("token", "state", "text"),
    [("right", OK, "is reached as ann"), ("wrong", NOTE, "the hub refuses the token")],
)
def test_tokens(hub, monkeypatch, token, state, text):
    monkeypatch.setenv("HF_TOKEN", token)
    (finding,) = doctor.check_hub(5)
    assert finding.state == state
    assert text in finding.text
    assert "right" not in str(finding).replace("is reached", "")


def test_a_broken_library_is_a_line_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (finding,) = doctor._try("decoders", doctor.check_decoders)
    assert finding.state == BROKEN
    assert finding.text.startswith("the library av does not load")
    assert finding.remedy == "install it, or install ugc_jax again"


def test_a_codec_that_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_CODECS", {"h264": BROKEN, "no_such": BROKEN, "nor_this": NOTE})
    found = list(doctor.check_decoders())
    assert found[0].text.endswith(": h264")
    assert [one.state for one in found[1:3]] == [BROKEN, NOTE]
    assert found[1].text == "no decoder of no_such"


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    (finding,) = doctor.check_cache(str(tmp_path))
    assert finding == Finding("cache", OK, f"compiled programs in {tmp_path}: 3 MB")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (finding,) = doctor.check_cache(str(tmp_path / "new"))
    assert (finding.state, finding.remedy[:29]) == (NOTE, "set JAX_COMPILATION_CACHE_DIR")


def test_a_gpu_that_jax_does_not_find(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA L4, 560.35, 23034 MiB, 1 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    cards = doctor.accelerators()
    assert cards == {"gpu": "1 x NVIDIA L4, driver 560.35, 1 MiB of 23034 MiB in use"}
    _, finding = doctor._of_devices(FACTS, cards)
    assert (finding.state, finding.remedy) == (NOTE, "pip install 'ugc_jax[cuda12]'")
    devices, driver = doctor._of_devices(FACTS | {"platform": "gpu", "kind": "NVIDIA L4"}, cards)
    assert devices.text == "1 x NVIDIA L4 (gpu), 8.0 of 8.0 GiB free for jax on each"
    assert driver == Finding("driver", OK, cards["gpu"])


def test_what_to_type_next(monkeypatch):
    def fit(work, verdict):
        return {"work": work, "size": "3b", "verdict": verdict, "command": f"run {work}"}

    online = [Finding("hub", OK, "")]
    fits = [fit("caption", "fits"), fit("sft lora", "tight"), fit("sft", "no")]
    gpu, cpu = FACTS | {"platform": "gpu"}, FACTS
    assert doctor.advice(online, fits, gpu) == ["run caption", "run sft lora"]
    assert doctor.advice(online, fits, cpu) == ["run caption"]
    assert doctor.advice([Finding("hub", NOTE, "")], fits, cpu)[0].startswith("ugc-jax init")
    broken = [Finding("devices", BROKEN, "", "mend it"), *online]
    assert doctor.advice(broken, [], {}) == ["mend it"]
    driver = [Finding("driver", NOTE, "", "pip install x"), *online]
    assert doctor.advice(driver, fits, cpu) == ["pip install x", "run caption"]
    monkeypatch.setattr(extras, "missing", lambda name: ["grain"])
    expected = ["run caption", "pip install 'ugc_jax[train]'", "run sft lora"]
    assert doctor.advice(online, fits, gpu) == expected
