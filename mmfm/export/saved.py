"""A model of ours that transformers has trained and saved, as a bundle again: `mmfm import FOLDER OUT`.

transformers writes config.json, which says all of the model, and its weights; what only mmfm reads, such as the
tokenizer, is copied there from the folder that the training began with.
"""

import hashlib
from pathlib import Path

from mmfm.config import UserError, require
from mmfm.export.bundle import save_bundle
from mmfm.inference.bundle.contents import CONFIG, FILES, KEY, READER, Bundle, is_of_mmfm, parsed
from mmfm.inference.bundle.tensors import CORE
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.inference.interface import Interface
from mmfm.inference.load import built
from mmfm.models.checkpoint import words_of
from mmfm.models.weights import adopt, check_size
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, parse_reader, parse_tokenizer
from mmfm.pretrained.source import read_json, require_safetensors
from mmfm.runtime.tensor_files import SavedTensors


def is_saved(source: str | Path) -> bool:
    """Whether this is a folder of a model of mmfm that transformers saved."""
    folder = Path(source)
    return not (folder / FILES).is_file() and is_of_mmfm(folder / CONFIG)


def import_saved(source: str | Path, out: str | Path, *, force: bool = False) -> Path:
    """Writes the bundle `out`. UserError: the folder lacks what its config.json asks for."""
    folder = Path(source)
    where = f"{folder / CONFIG}: {KEY}"
    bundle = parsed(read_json(folder / CONFIG).get(KEY), where)
    told = (
        f"{folder} holds {bundle.alone}" if not bundle.whole else f"{folder} has a codec, which transformers saves not"
    )
    require(bundle.whole and not bundle.run.model.codecs, f"{told}; train that with mmfm, by Run.start")
    require_safetensors(folder)
    tensors = SavedTensors(sorted(folder.glob("*.safetensors")), "save it again").read_all()
    weights = {name.removeprefix(CORE): tensor.float() for name, tensor in tensors.items()}
    tokenizer = _tokenizer(folder, bundle)
    check_size(bundle.run.model, weights, str(folder))
    core = built(bundle.run.model, tokenizer.size, bundle.run.contrastive)
    adopt(core, weights, str(folder))
    return save_bundle(Interface(core.eval(), bundle.run, tokenizer).eval(), out, bundle.modalities, force=force)


def _tokenizer(folder: Path, bundle: Bundle) -> Tokenizer:
    inner = load_tokenizer("bytes")
    if bundle.run.model.tokenizer != "bytes":
        inner = parse_tokenizer(_hashed(folder / TOKENIZER, bundle.tokenizer), str(folder / TOKENIZER))
    words = words_of(bundle.run.model)
    if words is None:
        return inner
    reader = parse_reader(_hashed(folder / READER, bundle.reader), words, str(folder / READER))
    return Tokenizer(inner.inner, reader)


def _hashed(path: Path, wanted: str) -> str:
    """The text of this file, which must be the one that config.json names."""
    told = f"{path} is not the file that the model was exported with"
    if not path.is_file():
        raise UserError(f"{path} is missing, which transformers does not save; copy it from the exported folder")
    data = path.read_bytes()
    require(hashlib.sha256(data).hexdigest() == wanted, f"{told}; copy it from the exported folder")
    return data.decode("utf-8")
