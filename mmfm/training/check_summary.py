"""What `mmfm train --check` prints: sources, objectives, conversations, and which parameters learn at which rate."""

from collections.abc import Iterator

from mmfm.config import MESSAGES, Run
from mmfm.data.splits import reads_remote
from mmfm.training.preflight import Opener, SourceSummary, objectives, open_here


def opener_for(run: Run) -> Opener:
    """What opens the run's sources: the standard library alone where all lie on this machine."""
    if not reads_remote(run):
        return open_here
    from mmfm.data.sources import open_source

    return open_source


def show_check(run: Run, found: list[SourceSummary]) -> None:
    """The run at a glance, before it exists."""
    from rich.console import Console
    from rich.table import Table

    shares, batch = sum(source.weight for source in run.data.train), run.data.batch_size
    sources = Table("source", "shards", "samples", "modalities", "in a batch", box=None, pad_edge=False)
    for item in found:
        share, provides = batch * item.source.weight // shares, ", ".join(item.source.modalities)
        sources.add_row(item.source.shards, str(item.shards), f"{item.samples:,}", provides, f"{share} of {batch}")
    goals = Table("objective", "weight", "samples that have it", box=None, pad_edge=False)
    for goal in objectives(run):
        goals.add_row(goal.name, f"{goal.weight:g}", f"{sum(item.holding(goal.needs) for item in found):,}")
    samples = sum(item.samples for item in found)
    times = f"{'at most ' * bool(run.data.tokens_per_batch)}{run.optim.steps * batch / samples:.1f} times"
    drawn = f"{run.optim.steps:,} steps of {run.data.of_a_step}: {times} the {samples:,}"
    console = Console(highlight=False)
    for part in (sources, "", goals, "", drawn, *parameters(run), *conversations(run), f"writes to {run.folder}"):
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def parameters(run: Run) -> tuple[str, ...]:
    """What learns and what is locked. Torch is imported only where the run's rates or adapters say that not all learn
    alike."""
    if not (run.optim.param_groups or run.model.adapters):
        return (f"every parameter that an objective asks for learns at optim.lr={run.optim.lr:g}",)
    from mmfm.training.initialize import parameters_of

    return parameters_of(run)


def conversations(run: Run) -> Iterator[str]:
    """Of each source of conversations, how much of the first ones is learned, what cannot be used, and the first one
    with what is learned of it in brackets. Those behind URLs are not fetched for it."""
    sources = [source for source in run.data.train if MESSAGES in source.modalities]
    if sources and run.chat is not None:
        from mmfm.data.conversation_check import look_at

        for source in sources:
            shards = opener_for(run)(source, run.data)
            yield from () if shards.remote else look_at(source.label, shards, run)
