"""Specifications of shards to `Shards`, on this machine or behind URLs."""

from collections.abc import Sequence

from mmfm import config
from mmfm.config import require
from mmfm.data.remote_cache import ShardCache, expand_remote
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards, check_holds
from mmfm.data.splits import asked_and_more, is_remote
from mmfm.data.urls import shown


def open_shards(specs: Sequence[str], settings: config.RemoteCache) -> Shards:
    """The shards of all these specifications, in order. Raises UserError where one names nothing that can be read."""
    remote = [is_remote(spec) for spec in specs]
    require(len(set(remote)) <= 1, f"{', '.join(specs)}: some are URLs and some are not; copy one kind to the other")
    if not any(remote):
        return _with_samples(specs, Shards([path for spec in specs for path in expand(spec)]))
    store = ShardCache(settings)
    return _with_samples(specs, Shards([entry for spec in specs for entry in expand_remote(spec, store)], store))


def _with_samples(specs: Sequence[str], shards: Shards) -> Shards:
    """Some of many tars may be empty, as where a download brought nothing; all of them may not."""
    told = f"the {len(shards.places)} tars of {', '.join(map(shown, specs))} hold no sample"
    require(len(shards) > 0, f"{told}; write or fetch them again, or name others")
    return shards


def check_there(specs: Sequence[str], settings: config.RemoteCache) -> None:
    """Raises UserError unless all these specifications name shards: by folders and lists, without a look into any."""
    for spec in (part for item in specs for part in asked_and_more(item) if part):
        if is_remote(spec):
            expand_remote(spec, ShardCache(settings))
        else:
            expand(spec)


def open_source(source: config.Source, data: config.Data) -> Shards:
    """The shards of a source. Refuses one of which more samples lack what it provides than may be bad."""
    shards = open_shards([source.shards], data.remote_cache)
    check_holds(source, shards, data.max_bad_fraction)
    return shards
