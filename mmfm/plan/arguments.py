"""The options of `mmfm plan`. Torch is imported by the call."""

from dataclasses import dataclass, replace

import tyro

from mmfm.config.load import read_run


@dataclass(frozen=True, kw_only=True)
class PlanArgs:
    """Say what a run would take on GPUs that need not be here: memory by name, time, traffic, largest batch, cost."""

    config: tyro.conf.Positional[str]
    """What `mmfm train` is given: a Python file, whose config() is executed, or a saved run.json."""
    gpus: int = 1
    """How many share each batch."""
    nodes: int = 0
    """On so many machines; 0: eight GPUs to each."""
    device: str = "auto"
    """Such as h100 or a100; cpu: this machine's; auto: the GPU that is here, else h100."""
    bandwidth: float = 50.0
    """GB/s that each GPU sends to other machines."""
    batch_size: int = 0
    """Samples of a step; 0: as the run says."""
    text_tokens: int = 64
    """Longest text, where the data are not here; the shortest has half of it."""
    audio_seconds: float = 10.0
    """Longest sound, where the data are not here; the shortest has half of it."""
    vocabulary: int = 32_768
    """Tokens of the tokenizer, where that is not here."""
    architectures: str = ""
    """A folder with the config.json of each hf:NAME at NAME, for a machine without a network."""
    json: bool = False
    """All of it for machines."""

    def __call__(self) -> None:
        run = read_run(self.config)
        if self.batch_size:
            run = replace(run, data=replace(run.data, batch_size=self.batch_size))
        from mmfm.plan.batches import Assumed
        from mmfm.plan.command import as_json, lines, machines_of, planned

        machines = machines_of(self.device, self.gpus, self.nodes, self.bandwidth)
        names = ("text_tokens", "audio_seconds", "vocabulary", "architectures")
        made = planned(run, machines, Assumed(**{name: getattr(self, name) for name in names}))
        print(as_json(made) if self.json else "\n".join(lines(made)), end="" if self.json else "\n")
