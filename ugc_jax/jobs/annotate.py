"""Serve a web page on which people annotate clips in three stages: sound, picture, both.

CLIPS is the folder of the clips. The project (database, media of the pages) is in output, and a
further run continues it. Without accounts the page is reached from this machine only, and whoever
opens it is the owner; with the first account, which has to be an owner's, everyone logs in.

Instead of serving, account, load, export and backup do one thing and end; several are done in this
order. See docs/annotation.md.
"""

import contextlib
import dataclasses
import getpass
import logging
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.settings import Schema, short_names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """Settings of annotate."""

    output: str  # folder of the project
    # people who annotate each clip; none, here and below: as the project has it, at first 1
    annotators: int | None = None
    # whether a teacher's draft of a stage (see load) is shown before the own answer, after it, or
    # never; recorded with each answer; at first after
    drafts: Literal["first", "after", "never"] | None = None
    # minutes for which a clip is kept for who has it, from the last save on; at first 30
    lock: float | None = None
    # agreement of a field, 0 to 1, below which the adjudicator decides; at first each field's own
    threshold: float | None = None
    questions: int | None = None  # questions that are proposed for a clip; at first 4
    # the database; none: SQLite in output; for a team postgresql://USER:PASSWORD@HOST/NAME
    database: str | None = None
    guidelines: str | None = None  # text file shown beside the forms, with [sound] [picture] [both]
    host: str = "127.0.0.1"  # address to serve on; one that others reach needs accounts
    port: int = 8017  # 0: a free one
    certificate: str | None = None  # PEM file, to serve https
    certificate_key: str | None = None  # PEM file with the certificate's key
    # address of a proxy before the server, such as https://annotate.example.org, which keeps the
    # name that it is called by (Host)
    proxy: str | None = None
    # NAME:ROLE of an account to add; roles are annotator, adjudicator, owner. The password is asked
    # for, or is the first line of the input
    account: str | None = None
    # labels of ugc-jax label, an earlier export, or released qa files to import
    load: str | None = None
    export: str | None = None  # folder for what is agreed: qa files, train.jsonl
    backup: str | None = None  # file for a copy of the database, also while it is served
    reading: ReadingConfig = ReadingConfig()
    judge: JudgeConfig = JudgeConfig()  # an LLM that proposes questions, too, if it has a model

    def __post_init__(self):
        def require(holds: bool, field: str, remedy: str):
            if not holds:
                raise UserError(f"{field} is {getattr(self, field)}; {remedy}")

        for field in ("annotators", "questions"):
            value = getattr(self, field)
            require(value is None or value >= 1, field, "give 1 or more")
        require(self.lock is None or self.lock > 0, "lock", "give minutes above 0")
        is_share = self.threshold is None or 0 <= self.threshold <= 1
        require(is_share, "threshold", "give a number from 0 to 1")
        require(0 <= self.port < 65536, "port", "give 0 to 65535")
        if (self.certificate is None) != (self.certificate_key is None):
            raise UserError("certificate and certificate_key belong together; give both, or none")
        if self.proxy is not None and not urlsplit(self.proxy).hostname:
            raise UserError(
                f"proxy is {self.proxy}; give an address such as https://annotate.example.org"
            )


SETTINGS = Schema(AnnotateConfig, short=short_names(reading=ReadingConfig))


def main(config: AnnotateConfig, folders: list[str]) -> int:
    """Exit status 0. Raises UserError for folders, files and databases that cannot be used."""
    if len(folders) != 1:
        raise UserError(f"{len(folders)} folders of clips; name one (it may have folders inside)")
    from ugc_jax.annotate.preparing import find
    from ugc_jax.annotate.store import Store

    output = Path(config.output)
    clips = find(folders[0])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {output} ({error.strerror}); choose another folder") from None
    store = Store(config.database or str(output / "annotate.sqlite"), _changes(config))
    with contextlib.closing(store):
        store.add_clips(clips)
        if not _did_other_things(config, store):
            _serve(config, store, clips, folders[0], output / "media")
    return 0


def _changes(config: AnnotateConfig) -> dict:
    given = dict(
        annotators=config.annotators,
        drafts=config.drafts,
        lock=None if config.lock is None else 60 * config.lock,
        threshold=config.threshold,
        questions=config.questions,
    )
    return {name: value for name, value in given.items() if value is not None}


def _did_other_things(config: AnnotateConfig, store) -> bool:
    from ugc_jax.annotate import exports, imports

    if config.account is not None:
        name, _, role = config.account.rpartition(":")
        if role != "owner" and not store.accounts.all():
            raise UserError("account: the first one has to be an owner's; write NAME:owner")
        store.accounts.add(name, _password(), role)
        store.log("", "account added", name, role=role)
        print(f"{name} has an account as {role}")
    if config.load is not None:
        counts = store.take_in(imports.read(config.load), config.load)
        print(f"{config.load}: {_listed(counts)}")
    if config.export is not None:
        counts = exports.write(config.export, store.agreed(), store.answers())
        store.log("", "export", config.export, rows=counts)
        print(f"{config.export}: {_listed(counts)}")
    if config.backup is not None:
        rows = store.back_up(Path(config.backup))
        print(f"{config.backup}: a copy of the database, {rows} rows")
    return any((config.account, config.load, config.export, config.backup))


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UserError("the passwords differ; try again")
    return password


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _serve(config: AnnotateConfig, store, clips: dict[str, str], folder: str, media: Path):
    from ugc_jax.annotate import app
    from ugc_jax.annotate.preparing import Preparing
    from ugc_jax.annotate.questions import LlmAsker
    from ugc_jax.web import server
    from ugc_jax.web.gate import Gate

    has_accounts = bool(store.accounts.all())
    proxy = urlsplit(config.proxy or "")
    if not has_accounts and (config.proxy or not server.is_loopback(config.host)):
        raise UserError(
            f"{config.proxy or f'host {config.host}'} is reached by others; first add an account "
            "with --account NAME:owner, then everyone logs in"
        )
    secure = config.certificate is not None or proxy.scheme == "https"
    if not secure and not server.is_loopback(config.host):
        logger.warning(
            "passwords cross the network unencrypted; give certificate and certificate_key, or "
            "serve on 127.0.0.1 behind a proxy with https (see proxy)"
        )
    gate = Gate(store.accounts, local=None if has_accounts else app.LOCAL, secure=secure)
    guidelines = app.read_guidelines(config.guidelines and Path(config.guidelines))
    with contextlib.ExitStack() as stack:
        asker = None
        if config.judge.model is not None:
            asker = stack.enter_context(LlmAsker(config.judge))
        project = app.Project(store, media, guidelines, asker)
        listening = stack.enter_context(server.bind(config.host, config.port))
        preparing = Preparing(store, clips, folder, media, config.reading)
        preparing.start()
        stack.callback(preparing.stop)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        files = (config.certificate, config.certificate_key) if config.certificate else None
        print(f"http{'s' if files else ''}://{shown}:{port}/ (Ctrl-C ends)", flush=True)
        created = app.create(project, gate)
        guarded = server.protected(created, config.host, app.BODY_LIMIT, proxy.hostname)
        server.serve(guarded, listening, files)
