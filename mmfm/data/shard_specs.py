"""What a specification of shards names: a folder, a tar, a glob or a pattern, parts joined by commas."""

import glob
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmfm.config import UserError

GROUP = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")  # what folders of splits are called
MOST_COMMAS = 8  # in the name of one file or folder
MOST_SHARDS, MOST_GROUPS = 1 << 18, 32  # of one pattern
FORMS = "give a folder of .tar shards, a .tar, a glob, or a pattern such as image-{000000..000007}.tar"


def expand(spec: str) -> list[Path]:
    """The tars that a specification names, parts joined by commas. Raises UserError where a part names nothing.

    What is there under just this name is meant, also where the name has a comma, a brace, a bracket or a space.
    """
    paths = [path for pattern in patterns(spec) for path in _found(pattern)]
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UserError(f"{spec!r} names {twice[0]} twice; name each shard once")
    return paths


def patterns(spec: str) -> list[str]:
    """The parts of a specification, their braces expanded; each of them can be given to `expand` alone."""
    return [pattern for part in parts_of(spec) for pattern in _spread(part)]


def parts_of(spec: str) -> list[str]:
    """A specification at its commas, but for those in braces and in the names of what is there."""
    if is_here(spec):
        return [spec]
    pieces, found, at = re.split(r",(?![^{]*\})", spec), list[str](), 0
    while at < len(pieces):
        ends = range(min(len(pieces), at + MOST_COMMAS), at + 1, -1)
        end = next((end for end in ends if _in_place(",".join(pieces[at:end]).strip())), at + 1)
        found.append(",".join(pieces[at:end]).strip())
        at = end
    return found


def is_here(name: str) -> bool:
    """Whether there is a file or a folder of just this name."""
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _in_place(pattern: str) -> bool:
    """Whether it is there, or its folder is, which has a comma in its name."""
    folder = pattern.rpartition("/")[0]
    return is_here(pattern) or ("," in folder and is_here(folder))


def _folder_and_rest(pattern: str) -> tuple[str, str]:
    """The longest folder that is there under just this name, with its slash, and what follows."""
    at = pattern.rfind("/")
    while at > 0 and not is_here(pattern[:at]):
        at = pattern.rfind("/", 0, at)
    return (pattern[: at + 1], pattern[at + 1 :]) if at > 0 else ("", pattern)


def _spread(part: str) -> list[str]:
    folder, rest = _folder_and_rest(part)
    return [part] if is_here(part) else [folder + pattern for pattern in braces(rest)]


def braces(pattern: str) -> list[str]:
    """What a shell makes of {000..007} and {a,b}: all combinations, the first ones vary most slowly."""
    found: list[str] = []
    open_groups = [iter([pattern])]
    while open_groups:
        now = next(open_groups[-1], None)
        match = GROUP.search(now) if now is not None else None
        if now is None:
            open_groups.pop()
        elif match:
            open_groups.append(_choices(now, match))
        else:
            found.append(now)
        if len(found) > MOST_SHARDS or len(open_groups) > MOST_GROUPS:
            raise UserError(f"{pattern[:80]!r} names over {MOST_SHARDS} shards; give their folder, or larger ones")
    return found


def _choices(pattern: str, match: re.Match[str]) -> Iterator[str]:
    first, last, listed = match.groups()
    middles = listed.split(",") if listed else (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return (pattern[: match.start()] + middle + pattern[match.end() :] for middle in middles)


def _found(pattern: str) -> list[Path]:
    try:
        path = Path(pattern).expanduser()
        if pattern and path.is_file():
            return [path]
    except (OSError, RuntimeError) as why:  # a name that is too long, a user that is not there
        raise UserError(f"there is no {pattern[:80]!r} ({' '.join(str(why).split())[:80]}); {FORMS}") from None
    folder, rest = (f"{path}/", "*.tar") if pattern and path.is_dir() else _folder_and_rest(str(path))
    found = sorted(map(Path, glob.glob(glob.escape(folder) + rest))) if glob.has_magic(rest) else []
    if not found and pattern and path.is_dir():
        found = _inside(path)
    if strange := next((name for name in found if not name.is_file()), None):
        raise UserError(f"{strange} is no file, but a folder, a pipe or a link to nothing; take it away")
    if found:
        return found
    if pattern and path.is_dir():
        raise UserError(f"the folder {pattern!r} holds no .tar; {_remedy(path)}")
    raise UserError(f"there is no {pattern!r}; {_remedy(path)}")


def _inside(folder: Path) -> list[Path]:
    """The tars of the folders in a folder that holds none itself, such as one for each modality. Several splits side by
    side are not one set of shards, and are refused."""
    held = sorted(path for path in folder.rglob("*.tar") if not any(name[0] == "." for name in _below(path, folder)))
    tops = sorted({_below(path, folder)[0] for path in held})
    splits = [name for name in tops if re.split(r"[-_.]", name.lower())[0] in SPLITS]
    if len(splits) > 1:
        raise UserError(f"the folder {str(folder)!r} holds several splits ({', '.join(splits)}); name one of them")
    return held


def _below(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _remedy(path: Path) -> str:
    if "numbers" not in path.parts:
        return FORMS
    root = Path(*path.parts[: path.parts.index("numbers") + 1])
    return f"make it with: mmfm data numbers {root}"
