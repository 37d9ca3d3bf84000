"""One examination: the sections in their order, each from what the ones before it left whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mmfm.config import MODALITIES, Run, UserError
from mmfm.data.remote_cache import ShardCache
from mmfm.data.sources import open_source
from mmfm.data.splits import reads_remote
from mmfm.doctor.decode import decode, decoding
from mmfm.doctor.duplicates import captions, exact, text_leaks
from mmfm.doctor.findings import Finding, Report, Section, finding, plural
from mmfm.doctor.near_duplicates import near
from mmfm.doctor.pace import pace_and_memory
from mmfm.doctor.scan import ScanStats, lengths, presence, scan
from mmfm.doctor.shard_integrity import Set, but_for, look, sets_of
from mmfm.inference.bundle import check_start
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.rendezvous import device_of_rank
from mmfm.training.initialize import Prepared, native_only, prepare
from mmfm.training.preflight import check


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How much is looked at. `samples` of each set are decoded, 0: all. `quick`: no sums, duplicates, speed."""

    samples: int = 512
    quick: bool = False
    fetch: bool = False  # shards behind URLs, into data.remote_cache, to look inside


def examine(run: Run, config: str, extent: ScanOptions, watch: Callable[[str], object] = lambda _: None) -> Report:
    """Looks at all that the run would read. `watch` is told what comes next. Raises nothing for what data can be."""
    begun = time.perf_counter()
    prepared, start = _start(run)
    run, tokenizer = (native_only(run), None) if prepared is None else (prepared.run, prepared.tokenizer)
    watch("shards")
    sets, shards = look(sets_of(run), ShardCache(run.data.remote_cache), sums=not extent.quick, fetch=extent.fetch)
    watch("lengths")
    swept = [scan(one, run, tokenizer) for one in sets]
    sections = [start, shards, presence(sets, swept, run), lengths(sets, swept, run, tokenizer)]
    watch("decoding")
    sections.append(decoding(sets, [decode(one, run, extent.samples, tokenizer) for one in sets], swept, run))
    if extent.quick:
        told = "checksums, duplicates, speed and memory were left out (--quick)"
        sections.append(Section(name="Left out", findings=(finding("NOTE", "quick", told),)))
    else:
        watch("duplicates")
        sections.append(duplicates(sets, swept))
        watch("speed")
        sections += _speed(run, tokenizer, start)
    took = round(time.perf_counter() - begun, 1)
    return Report(run=run.name, config=config, seconds=took, sections=tuple(sections))


def _start(run: Run) -> tuple[Prepared | None, Section]:
    """What `mmfm train` asks before it begins, and the run with its towers resolved."""
    findings, prepared = list[Finding](), None
    try:
        prepared = prepare(run)
        check(run, open_source) if reads_remote(run) else check(run)
        if run.start:
            check_start(run)
        device_of_rank(run.accelerator)
        told = f"mmfm train would begin: {run.optim.steps:,} steps of {plural(run.data.batch_size, 'sample')}"
        findings.append(finding("OK", "begins", told))
    except (UserError, OSError) as why:
        findings.append(finding("ERROR", "refused", f"mmfm train would refuse this run: {why}"))
    return prepared, Section(name="Start", findings=tuple(findings))


def duplicates(sets: list[Set], swept: list[ScanStats]) -> Section:
    """Exact and near."""
    findings = [item for kind in MODALITIES if kind != "text" for item in exact(sets, kind)] + near(sets)
    if any(map(len, sets)) and not any(item.level in ("WARNING", "ERROR") for item in findings):
        told = "no picture or sound lies in two splits, and no picture of a score looks like one of training"
        told += but_for(sets)
        findings.insert(0, finding("OK", "apart", told))
    return Section(name="Duplicates", findings=(*findings, *text_leaks(sets, swept), *captions(sets, swept)))


def _speed(run: Run, tokenizer: Tokenizer | None, start: Section) -> list[Section]:
    if tokenizer is None or any(item.level == "ERROR" for item in start.findings):
        told = "not measured, as the run would not begin"
        return [Section(name="Speed", findings=(finding("NOTE", "not_measured", told),))]
    return [section for section in pace_and_memory(run, tokenizer) if section is not None]
