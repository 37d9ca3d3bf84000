"""The options of `mmfm plan`. Torch is imported by the call."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mmfm.config import Run


@dataclass(frozen=True, kw_only=True)
class PlanArgs:
    """Say what a run would take on GPUs that need not be here: memory by name, time, traffic, largest batch, cost.

    CONFIG comes first; the options of the run change its values as in `mmfm train`, such as --parallel.micro-batch 512.
    """

    gpus: int = 0
    """How many share each batch; 0: as the run says, devices on each of parallel.nodes."""
    nodes: int = 0
    """On so many machines; 0: eight GPUs to each, or as the run says."""
    device: str = "auto"
    """Such as h100 or a100; cpu: this machine's; auto: the GPU that is here, else h100."""
    bandwidth: float = 50.0
    """GB/s that each GPU sends to other machines."""
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
    run: Annotated[Run, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        from mmfm.plan.batches import Assumed
        from mmfm.plan.command import as_json, lines, machines_of, planned

        run = self.run
        gpus = self.gpus or run.ranks
        nodes = self.nodes or (0 if self.gpus else run.parallel.nodes)
        machines = machines_of(self.device, gpus, nodes, self.bandwidth)
        names = ("text_tokens", "audio_seconds", "vocabulary", "architectures")
        made = planned(run, machines, Assumed(**{name: getattr(self, name) for name in names}))
        print(as_json(made) if self.json else "\n".join(lines(made)), end="" if self.json else "\n")
