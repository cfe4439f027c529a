"""The data of paper.py: where the released rows and videos are, and the manifests made of them.

The release has train_data/ and omni_bench_qa/ in its repository, and train/ and qa/ in copies, so
files are found by their names. Its videos are files named by the clips' ids, in any folder.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from paper import CLIPS_FROM, ROWS_FROM, UNRELEASED

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, clip_id, load_tasks
from ugc_jax.media.find import find_clips

REMEDY = "give the released file by --data DIR"
MOST_MISSING = 0.1  # share of the videos that may be missing


def prepare(
    output: Path,
    source: Path,
    videos: Path,
    names: Sequence[str],
    tasks: Sequence[str],
    rows: int | None = None,
    allow_missing: bool = False,
):
    """Write output/NAME.jsonl for each training file, with the paths of the videos, and output/qa.

    rows: only the first of each file. Prints which clips are shared or missing. Raises UserError if
    a file is missing or wrong, if a clip of the benchmark is in a training file, and if more than
    MOST_MISSING of a file's videos are missing (allow_missing: if all are).
    """
    videos_by_id = find_videos(videos)
    for task in tasks:
        write(output / "qa" / FORMS[task].file, questions(source, task, rows))
    benchmark = load_tasks(output / "qa", list(tasks))
    tests = {one for task in benchmark.values() for one in task.ids}
    trained = {}
    for name in names:
        trained[name] = training_rows(source, name, rows)
        ids = {one for one, _ in trained[name]}
        if both := tests & ids:
            raise UserError(
                f"{name}.jsonl: {len(both)} of its clips are in the benchmark, such as "
                f"{min(both)}; remove them, or scores would be of what was trained on"
            )
    print(f"   no clip of training is among the {len(tests)} of the benchmark")
    for one, other in zip(names, names[1:], strict=False):
        shared = {id_ for id_, _ in trained[one]} & {id_ for id_, _ in trained[other]}
        print(f"   {len(shared)} clips are in both {one} and {other}")
    for name, pairs in trained.items():
        kept = [row | {"videos": [videos_by_id[id_]]} for id_, row in pairs if id_ in videos_by_id]
        check_missing(name, len(pairs) - len(kept), len(pairs), videos, allow_missing)
        write(output / f"{name}.jsonl", files.to_lines(kept))
    missing = len(tests - videos_by_id.keys())
    check_missing("the benchmark", missing, len(tests), videos, allow_missing)


def prepare_toy(output: Path, world: Path, names: dict[str, int]):
    """Write output/NAME.jsonl with so many rows of the world: the last for GRPO, else the first."""
    rows = [line.value for line in files.read_lines(world / "train.jsonl", "delete the folder")]
    for name, count in names.items():
        chosen = rows[-count:] if name.startswith("grpo") else rows[:count]
        moved = [
            row | {"videos": [str(world / video) for video in row["videos"]]} for row in chosen
        ]
        write(output / f"{name}.jsonl", files.to_lines(moved))


def fetch_rows(folder: Path) -> Path:
    """Clone the released repository, unless the folder exists."""
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.new")
        subprocess.run(["rm", "-rf", str(new)], check=True)
        command = ["git", "clone", "--quiet", "--depth=1", ROWS_FROM, str(new)]
        if subprocess.run(command).returncode:
            raise UserError(f"{ROWS_FROM}: cannot be cloned; give a copy of it by --data DIR")
        new.rename(folder)
    return folder


def fetch_clips(folder: Path):
    """Download the videos of the benchmark; a stopped download continues."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(CLIPS_FROM, repo_type="dataset", local_dir=folder)
    except Exception as error:  # of an HTTP library, which depends on huggingface_hub's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{CLIPS_FROM}: its download failed ({reason}); give the videos by --videos DIR"
        ) from None


def find_videos(folder: Path) -> dict[str, str]:
    """Id -> path of each video in the folder or below it. Raises UserError without any."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give that of the videos by --videos DIR")
    return {clip_id(path): path for path in find_clips([str(folder.absolute())])}


def find_file(folder: Path, name: str) -> Path:
    """The file of that name below the folder: that of a folder qa, or else the highest one."""
    found = [path for path in folder.rglob(name) if path.is_file()]
    if not found:
        missing = f"{folder}: has no {name}"
        if Path(name).stem in UNRELEASED:
            missing += ", of which the rows are not released; write your own"
        raise UserError(f"{missing}; give a folder with it by --data DIR")
    return min(found, key=lambda path: (path.parent.name != "qa", len(path.parts), path))


def questions(source: Path, task: str, rows: int | None) -> str:
    """The text of a task's file, with the first rows only."""
    path = find_file(source, FORMS[task].file)
    if rows is None:
        return files.read_text(path, REMEDY)
    if path.suffix == ".jsonl":
        return "".join(line.text + "\n" for line in list(files.read_lines(path, REMEDY))[:rows])
    content = files.read_json(path, REMEDY)
    few = content["samples"][:rows]
    return json.dumps(content | {"samples": few, "valid_count": len(few)}, ensure_ascii=False)


def training_rows(source: Path, name: str, rows: int | None) -> list[tuple[str, dict]]:
    """(id of its clip, row) of each row of a training file."""
    path, pairs = find_file(source, f"{name}.jsonl"), []
    for line in list(files.read_lines(path, REMEDY))[:rows]:
        videos = line.value.get("videos") if isinstance(line.value, dict) else None
        if not (isinstance(videos, list) and len(videos) == 1 and isinstance(videos[0], str)):
            raise UserError(f"{path}:{line.number}: has no list `videos` of one path; {REMEDY}")
        pairs.append((clip_id(videos[0]), line.value))
    return pairs


def check_missing(name: str, missing: int, total: int, videos: Path, allow_missing: bool):
    if not missing:
        return
    text = f"{name}: {missing} of {total} videos are not in {videos}"
    if missing == total or (missing > MOST_MISSING * total and not allow_missing):
        remedy = "" if missing == total else ", or go on without them by --allow-missing"
        raise UserError(
            f"{text}; the release lists links to those of training (train_data/*_urls.txt): give a "
            f"folder with all, named by their ids, by --videos DIR{remedy}"
        )
    print(f"   {text}; left out")


def write(path: Path, text: str):
    """Write a file, unless it has this content."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
