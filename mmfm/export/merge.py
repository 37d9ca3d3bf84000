"""`mmfm merge`: a run with adapters as one without, in whose weights they are; proved on inputs before it is there."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import require
from mmfm.config.serialization import to_json
from mmfm.export.folder import ABOUT, export_folder, refuse, write_json
from mmfm.inference.load import load_model
from mmfm.inference.merged import Merged, merged
from mmfm.models.checkpoint import RUN, save


def merge(
    run: str | Path, out: str | Path, *, step: int | None = None, ema: bool = False, force: bool = False
) -> Merged:
    """Writes OUT, a run's folder with one whole checkpoint, which is used as any other, and needs nothing beside it.

    UserError: RUN has no adapters, OUT exists and `force` is not given, or the outputs differ.
    """
    out = Path(out)
    refuse(out, force)
    model = load_model(run, step, ema=ema)
    told = f"{run} has no adapters, and nothing is to be merged"
    require(bool(model.config.adapters), f"{told}; `mmfm export {run} FOLDER` makes a bundle of it")
    made = merged(model)
    assert model.checkpoint is not None
    number = int(model.checkpoint.name.rpartition("-")[2]) if "-" in model.checkpoint.name else model.run.optim.steps
    plain = replace(made.model.run, name=out.name, out=str(out.parent))
    with export_folder(out, force) as folder:
        (folder / RUN).write_text(to_json(plain), encoding="utf-8")
        save(folder, number, plain, model.tokenizer, made.model.core.state_dict(), {})
        about = {"to": "run", "run": str(model.run.name), "merged": made.layers}
        about |= {"difference": made.difference, "difference_of_a_layer": made.of_a_layer}
        write_json(folder / ABOUT, about)
    return made
