"""What stands beside the weights in a model's folder: what it is, and how it is opened, in lines that can be copied."""

from mmfm.config import MODALITIES
from mmfm.inference.bundle.contents import Bundle

PART = """---
library_name: mmfm
---

# {source}

Holds {holds}. Written by mmfm with {made_with}.

```python
import mmfm

{use}
```
"""
MODEL = """---
library_name: transformers
pipeline_tag: {tag}
---

# {source}

A model of mmfm. It reads {reads} and embeds them in one space of {dim} dimensions{writes}.
Written by mmfm with {made_with}; `pip install mmfm` first: the folder holds weights and settings, and its code is a
stub that imports the package.{codecs}

```python
import mmfm

model = mmfm.load("FOLDER")
encoder = mmfm.load_encoder("{first}", "FOLDER")  # reads only what it needs
```

```python
import mmfm.export.hf
from transformers import {autos}

mmfm.export.hf.register()
{lines}
```
"""
CODECS = " What makes pictures and sounds of codes is in `codecs.safetensors`, which only mmfm reads."
LINES = {
    "image": (
        'inputs = processor(images=[picture], text=["seven", "eight"], padding=True, return_tensors="pt")\n'
        "model(**inputs).logits_per_image.softmax(-1)"
    ),
    "audio": 'model.get_audio_features(**processor(audio=[wave], return_tensors="pt")).pooler_output',
    "text": 'model.get_text_features(**tokenizer(["seven", "eight"], padding=True, return_tensors="pt")).pooler_output',
}
WORDS = {"image": "pictures", "audio": "sounds", "text": "text"}


def card(bundle: Bundle) -> str:
    """README.md, with the block that model hubs read."""
    about = {"source": bundle.source, "made_with": bundle.made_with}
    if not bundle.whole:
        return PART.format(**about, holds=", ".join(bundle.components), use=_use(bundle))
    tasks = [item.task for item in bundle.run.generative]
    autos, lines = _transformers(bundle, tasks)
    return MODEL.format(
        **about,
        tag="zero-shot-image-classification" if "image" in bundle.modalities else "feature-extraction",
        reads=", ".join(WORDS[name] for name in bundle.modalities),
        first=bundle.modalities[0],
        dim=bundle.run.model.embed_dim,
        writes=f"; it writes {', '.join(f'`{task}`' for task in tasks)}" if tasks else "",
        codecs=CODECS if "codecs" in bundle.components else "",
        autos=", ".join(autos),
        lines="\n".join(lines),
    )


def _use(bundle: Bundle) -> str:
    """The line that a person would copy, of a part alone."""
    if not bundle.modalities:
        return 'trunk = mmfm.native("path/of/this/folder")  # for a configuration: Model(trunk=trunk, ...)'
    return f'encoder = mmfm.load_encoder("{bundle.modalities[0]}", "path/of/this/folder")'


def _transformers(bundle: Bundle, tasks: list[str]) -> tuple[list[str], list[str]]:
    """The classes to import, and what is done with them."""
    reads = [name for name in MODALITIES if name in bundle.modalities]
    lines = ['model = AutoModel.from_pretrained("FOLDER")', 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")']
    lines += ['processor = AutoProcessor.from_pretrained("FOLDER")'] if set(reads) - {"text"} else []
    lines += [LINES[name] for name in reads if name != "image" or "text" in reads]
    autos = ["AutoModel", *(["AutoProcessor"] if set(reads) - {"text"} else []), "AutoTokenizer"]
    if tasks:
        tokenizer = "writing" if bundle.reader else "tokenizer"
        autos.insert(1, "AutoModelForCausalLM")
        lines += ['writer = AutoModelForCausalLM.from_pretrained("FOLDER")']
        lines += ['writing = AutoTokenizer.from_pretrained("FOLDER", subfolder="writer")'] * bool(bundle.reader)
        inputs = {">text": f'{tokenizer}("for", return_tensors="pt")'}
        inputs |= {"image>text": 'processor(images=[picture], return_tensors="pt")'}
        lines += [f"{tokenizer}.decode(writer.generate(**{inputs[task]})[0])" for task in inputs if task in tasks]
    return autos, lines
