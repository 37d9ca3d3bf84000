"""Lists that lie beside a split's shards, on this machine or behind a URL: names of classes, sentences."""

from pathlib import Path

from mmfm.config import RemoteCache
from mmfm.data import remote_cache
from mmfm.data.remote_servers import Absent, Denied
from mmfm.data.shard_specs import expand, patterns
from mmfm.data.splits import asked_and_more, is_remote
from mmfm.data.urls import beside, folder_of, shown

MOST_BYTES = 1 << 24  # of a list


def texts_beside(spec: str, name: str, store: RemoteCache) -> list[tuple[str, str | None]]:
    """Where files of this name lie beside the shards of "A" or "A+B", whose B has no say; with their text, where that
    had to be fetched. A folder of folders of shards may hold the list itself."""
    asked = asked_and_more(spec)[0]
    if is_remote(asked):
        folders = dict.fromkeys(folder_of(url)[0] for url in patterns(asked))
        found = [_fetched(beside(folder, name), remote_cache.ShardCache(store)) for folder in folders]
        return [one for one in found if one is not None]
    named = [Path(pattern).expanduser() for pattern in patterns(asked)]
    folders = dict.fromkeys([*filter(Path.is_dir, named), *(shard.parent for shard in expand(asked))])
    return [(str(folder / name), None) for folder in folders if (folder / name).is_file()]


def _fetched(url: str, store: remote_cache.ShardCache) -> tuple[str, str] | None:
    """None where there is none; some servers deny what is not there."""
    try:
        return shown(url), store.text(url, MOST_BYTES)
    except (Absent, Denied):
        return None
