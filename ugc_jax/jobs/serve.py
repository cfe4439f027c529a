"""Serve a captioner over HTTP, with OpenAI's chat completions: clips, pictures, sounds and text in.

The clip settings, the system prompt and the question are by default those that the checkpoint was
trained with, and so is the sampling: a request may name others. The address is this machine's own
unless --host names another, which needs a key: in UGC_JAX_API_KEY or --api_key_file. SIGTERM and
Ctrl-C finish what is under way within --limits.shutdown seconds. See docs/serving.md.
"""

import contextlib
import dataclasses
import logging
import signal
import sys
from pathlib import Path

from ugc_jax.errors import UserError
from ugc_jax.generate.defaults import PUBLISHED
from ugc_jax.generate.settings import NEW_TOKENS, EngineConfig, SamplingConfig, caption_schema
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.scratch import ScratchFolder
from ugc_jax.serve.settings import LimitsConfig
from ugc_jax.sharding import MeshConfig

logger = logging.getLogger(__name__)

USUAL_NEW_TOKENS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of serve."""

    checkpoint: str = PUBLISHED  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    name: str | None = None  # of the model in requests; none: the checkpoint's
    host: str = "127.0.0.1"  # address to serve on; one that others reach needs a key
    port: int = 8000  # 0: a free one
    api_key_file: str | None = None  # file with the keys, one a line; none: UGC_JAX_API_KEY
    open: bool = False  # true: let others reach the server without a key
    certificate: str | None = None  # PEM file, to serve https
    certificate_key: str | None = None  # PEM file with the certificate's key
    media_root: str | None = None  # folder whose files requests may name by file://; none: no files
    urls: bool = False  # true: fetch clips by http and https, from the public internet only
    url_hosts: str | None = None  # names that may be fetched from, with commas between; none: all
    limits: LimitsConfig = LimitsConfig()
    clip: ClipSettings = ClipSettings()
    sampling: SamplingConfig = SamplingConfig()  # where a request names none
    engine: EngineConfig = EngineConfig()
    mesh: MeshConfig = MeshConfig(data=1, fsdp=1, tensor=1)
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise UserError(f"port is {self.port}; give 0 to 65535")
        if (self.certificate is None) != (self.certificate_key is None):
            raise UserError("certificate and certificate_key belong together; give both, or none")
        if self.url_hosts is not None and not self.urls:
            raise UserError("url_hosts needs --urls, which allows fetching")
        most = self.limits.new_tokens
        if most is not None and most > NEW_TOKENS[-1]:
            raise UserError(f"limits.new_tokens is {most}; use at most {NEW_TOKENS[-1]}")


SETTINGS = caption_schema(ServeConfig)


def main(config: ServeConfig, _: list[str]) -> int:
    """Exit status 0. Raises UserError for settings and checkpoints that cannot be used."""
    from ugc_jax.serve import app
    from ugc_jax.web import server

    if config.media_root is not None and not Path(config.media_root).is_dir():
        raise UserError(f"media_root: {config.media_root} is not a folder")
    keys = app.read_keys(config.api_key_file)
    if not keys and not config.open and not server.is_loopback(config.host):
        raise UserError(
            f"host {config.host} is reached by others; put a key into {app.KEY_VARIABLE} or "
            "--api_key_file, or give --open if a proxy or a firewall stands before it"
        )
    if config.certificate is None and not server.is_loopback(config.host):
        logger.warning(
            "clips and keys cross the network unencrypted; give certificate and certificate_key, "
            "or serve on 127.0.0.1 behind a proxy with https"
        )
    signal.signal(signal.SIGTERM, _exit)  # raised again by the server after its end
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(server.bind(config.host, config.port))
        answering = _answering(config, stack)
        created = app.Keys(app.create(answering), keys)
        guarded = server.protected(
            created, config.host, int(config.limits.upload * 1e6), answer=_too_large
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        files = (config.certificate, config.certificate_key) if config.certificate else None
        address = f"http{'s' if files else ''}://{shown}:{port}"
        print(f"{address}/v1 (a page to try it: {address}/; Ctrl-C ends)", flush=True)
        server.serve(
            guarded, listening, files,
            shutdown=config.limits.shutdown + 5, header_timeout=config.limits.header_timeout,
            on_exit=answering.stop,
        )  # fmt: skip
    return 0


def _answering(config: ServeConfig, stack: contextlib.ExitStack):
    """Load the model and start the engine and the workers, which end with the stack."""
    from ugc_jax.generate.captioner import Captioner
    from ugc_jax.generate.live import Live
    from ugc_jax.jobs.caption import used_mesh
    from ugc_jax.serve.addresses import Fetching
    from ugc_jax.serve.answering import MB, Answering, Model
    from ugc_jax.serve.media import Store
    from ugc_jax.serve.reading import Reader

    captioner = Captioner.from_pretrained(
        config.checkpoint, revision=config.revision, mesh=used_mesh(config.mesh),
        **dataclasses.asdict(config.compute),
    )  # fmt: skip
    captioner.defaults.report(config.clip, config.sampling)
    clip, sampling = captioner.defaults.apply(config.clip, config.sampling)
    limits = config.limits
    most = most_new_tokens(limits, sampling, captioner.config)
    live = Live(captioner, places=config.engine.batch_size, new_tokens=most, waiting=limits.waiting)
    stack.callback(live.close, 0.0)
    reader = Reader(captioner.tokenizer, captioner.config, clip, config.engine)
    stack.callback(reader.close)
    fetching = None
    if config.urls:
        hosts = tuple(filter(None, (config.url_hosts or "").replace(" ", "").lower().split(",")))
        fetching = Fetching(hosts, int(limits.upload * MB), limits.fetch_timeout)
    root = None if config.media_root is None else Path(config.media_root)
    folder = stack.enter_context(ScratchFolder("ugc_jax-serve-"))
    name = config.name or _name(config.checkpoint)
    model = Model(name, sampling, captioner.config.tokens.eos_token_id, most)
    return Answering(model, live, reader, Store(root, fetching), limits, folder)


def most_new_tokens(limits: LimitsConfig, sampling: SamplingConfig, model: OmniConfig) -> int:
    """Return the most new tokens of a request. sampling: resolved."""
    most = limits.new_tokens or max(USUAL_NEW_TOKENS, sampling.max_new_tokens)
    return min(most, model.text.max_position_embeddings // 2)


def _name(checkpoint: str) -> str:
    """Return the name of a model: its hub id, or its folder's name."""
    path = Path(checkpoint)
    return path.resolve().name if path.is_dir() else checkpoint


def _too_large(text: str, status: int, headers: dict[str, str]):
    from ugc_jax.serve.protocol import error_response

    logger.warning("refused (%d): %s", status, text)
    return error_response(text, status, headers)


def _exit(*_):
    sys.exit(128 + signal.SIGTERM)
