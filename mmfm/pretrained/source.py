"""Where an encoder comes from, as a person writes it: "LIBRARY:NAME" or a folder; and what to say if it cannot come."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import UserError, require
from mmfm.config.encoders import LIBRARIES

KINDS = (*LIBRARIES, "wheel", "bundle")
ADDRESS = re.compile(r"\S*https?://\S*")
FORMS = "timm:NAME, open_clip:NAME/TAG, hf:NAME, torchaudio:BUNDLE, wheel:PACKAGE or a folder"


class Source(NamedTuple):
    """kind: one of KINDS. name: the library's own name, or where there is a folder, that."""

    kind: str
    name: str
    folder: Path | None = None


def parse(source: str) -> Source:
    kind, colon, name = source.partition(":")
    if colon and kind in (*LIBRARIES, "wheel"):
        require(bool(name), f"source {source!r} names nothing; give {FORMS}")
        return Source(kind, name)
    folder = Path(source)
    require(folder.is_dir(), f"source {source!r} is no folder, and no library's name; give {FORMS}")
    return Source(_kind_of(folder), source, folder)


def read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as why:
        raise UserError(f"{path} cannot be read as JSON ({why}); fetch or write it again") from None
    require(isinstance(tree, dict), f"{path} should hold a JSON object; give another source, or write it again")
    return tree


def present(name: str, file: str, source: str) -> Path | None:
    """A file of a folder or of a repository; None where it truly is not there.

    UserError: the repository cannot be asked, and its cache does not say whether it has the file.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.exists() else None
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with fetching(source, f"the repository {name} ({file})", str(constants.HF_HUB_CACHE), False):
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError:
            if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
                return None
            raise
        except EntryNotFoundError:
            return None


def _kind_of(folder: Path) -> str:
    """By the file that each library leaves in a folder."""
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    require(
        (folder / "config.json").is_file(),
        f"folder {str(folder)!r} has no config.json or open_clip_config.json: no encoder is in it; "
        "give a folder that `mmfm import`, transformers, timm or open_clip wrote",
    )
    found = read_json(folder / "config.json")
    if found.get("model_type") == "mmfm":
        return "bundle"
    kind = "hf" if "model_type" in found else "timm" if "architecture" in found else ""
    require(bool(kind), f"{folder / 'config.json'} has neither model_type (transformers) nor architecture (timm)")
    return kind


def require_safetensors(folder: Path) -> None:
    """Weights of a folder are read from its own safetensors alone: a pickle is converted by whoever trusts it."""
    adapter = (folder / "adapter_config.json").exists()
    require(
        not adapter,
        f"{folder} has an adapter_config.json, which leads to another model; merge the adapter into its model "
        "(PEFT's merge_and_unload) and save that",
    )
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _require_own_files(folder, index)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for kind in ("*.bin", "*.pth", "*.pt", "*.ckpt") for path in folder.glob(kind))
    if pickles:
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which is not opened here; where you trust it, load it with its own "
            "library and save it again as safetensors (save_pretrained, or safetensors.torch.save_file)"
        )
    raise UserError(
        f"folder {str(folder)!r} has no *.safetensors: no weights are in it; "
        "add them, or set the tower's weights to 'random'"
    )


def require_complete(lacking: Collection[str], source: str, remedy: str = "give a source that holds them") -> None:
    """What the weights of a whole file lack, as where it is of another model than the configuration beside it, its
    library fills with random numbers; none of these may pass for trained ones."""
    names = ", ".join(sorted(lacking)[:3])
    told = f"{source}: its weights lack {names} ({len(lacking)} in all), which its config.json asks for"
    require(not lacking, f"{told}; they would be random numbers; {remedy}")


def _require_own_files(folder: Path, index: Path) -> None:
    """An index of several files names files beside it, all of which are there."""
    named = read_json(index).get("weight_map")
    require(isinstance(named, dict), f"{index} lists no files of weights (weight_map); write the folder again")
    assert isinstance(named, dict)
    for name in dict.fromkeys(map(str, named.values())):
        plain = name.endswith(".safetensors") and Path(name).name == name
        require(plain, f"{index} names {name[:80]!r}, which is no file beside it; do not trust this folder")
        require((folder / name).is_file(), f"{folder} lacks {name}, which its index names; copy the whole folder again")


def own_code(why: Exception) -> bool:
    """Whether a library stopped because the source brings code of its own, which is never run here."""
    return "trust_remote_code" in str(why) or "custom code" in str(why)


@contextmanager
def fetching(source: str, what: str, cache: str, random: bool = True) -> Iterator[None]:
    """Whatever a library raises when it can neither find `what` in its cache nor download it, as one line.

    random: whether the architecture without weights could be had all the same.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as why:  # each library and each of its transports raises classes of its own
        if own_code(why):
            raise UserError(
                f"{source}: {what} needs code of its own, which is not run here; give a model that its library itself "
                "has, or convert it to one"
            ) from None
        if "gated repo" in str(why).lower():
            remedy = "ask for access on its page and log in (`hf auth login`), or give a local folder as source"
            raise UserError(f"{source}: {what} is gated; {remedy}") from None
        told = f"{type(why).__name__}: {ADDRESS.sub('the hub', ' '.join(str(why).split()))[:240]}"
        if Path(source).is_dir():
            raise UserError(f"{source}: {what} cannot be loaded from this folder ({told}); write it again") from None
        alone = "; weights='random' needs no download" if random else ""
        raise UserError(
            f"{source}: {what} is neither in the cache nor could it be downloaded ({told}). With a network, run the "
            f"same command once, or copy that cache ({cache}) from a machine that has it; or give a local folder as "
            f"source{alone}"
        ) from None
