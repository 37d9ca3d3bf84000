"""A folder of shards that is written tar by tar: a complete one is kept, and a stopped one goes on where it was."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfm.config import UserError, require
from mmfm.data import shard_list
from mmfm.data.writer import as_json
from mmfm.runtime.files import locked, replace_file

LEFT_OUT, RECORDS = "left_out.jsonl", ".build"
REMEDY = "choose another folder, or delete this one"


class ShardFolder:
    """`facts` say what it is written of, as JSON: by them, in the file `manifest`, a stopped one is known again.

    Beside the tars lies a record of each until all are there. command: of `mmfm data`, for messages.
    """

    def __init__(self, out: Path, manifest: str, facts: Mapping[str, Any], command: str) -> None:
        self.out, self.manifest, self.facts, self.command = out, out / manifest, dict(facts), command

    def complete(self) -> bool:
        """Whether it is this work and whole. UserError if it is something else."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        try:
            tree = json.loads(self.manifest.read_text(encoding="utf-8"))
            same, complete = {name: tree[name] for name in self.facts} == self.facts, tree["complete"] is True
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{self.out} exists and was not written by mmfm data {self.command}; {REMEDY}") from None
        require(same, f"{self.out} was begun from another input or with other options; repeat those, or {REMEDY}")
        for name, entry in shard_list.read_list(self.out).items() if complete else ():
            whole = (self.out / name).is_file() and (self.out / name).stat().st_size == entry.bytes
            require(whole, f"{self.out / name} is missing or was changed; {REMEDY} and {self.command} again")
        if complete:
            print(f"{self.out} is complete already; nothing to do")
        return complete

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For this process alone, without the half-written files of a killed one. UserError where it cannot be written.

        Two that wrote into one folder would write the same files.
        """
        try:
            with locked(self.out, f"written by mmfm data {self.command}", "or stop it", RECORDS):
                for path in (*self.out.glob(".*.tmp"), *(self.out / RECORDS).glob(".*.tmp")):
                    path.unlink()
                self._write_manifest({"complete": False})
                yield
        except OSError as why:
            where = f" ({why.filename})" if why.filename else ""
            message = f"cannot {self.command} {self.out}: {why.strerror or why}{where}"
            raise UserError(f"{message}; put that right, and the same command goes on where it stopped") from why

    def write_left_out(self, rows: Sequence[Mapping[str, Any]]) -> None:
        replace_file(self.out / LEFT_OUT, "".join(as_json(row).decode() + "\n" for row in rows))

    def finish(self, **more: Any) -> None:
        """The list of the shards; only then is the work complete."""
        shard_list.write_list(self.out)
        self._write_manifest({"complete": True, **more})
        shutil.rmtree(self.out / RECORDS)

    def _write_manifest(self, more: Mapping[str, Any]) -> None:
        replace_file(self.manifest, as_json({**self.facts, **more}) + b"\n")


def record_path(shard: Path) -> Path:
    return shard.parent / RECORDS / f"{shard.stem}.json"
