"""What stands beside the weights in a model's folder: what it is, and how it is opened, in lines that can be copied."""

from mmfm.export.hf.folder import WRITER
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
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

mmfm.export.hf.register()
model = AutoModel.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
{lines}
```
"""
CODECS = " What makes pictures and sounds of codes is in `codecs.safetensors`, which only mmfm reads."
EMBED = 'model.get_{}_features(**processor({}, padding=True, return_tensors="pt")).pooler_output'
GIVEN = {"image": "images=[picture]", "audio": "audio=[wave]", "text": 'text=["seven", "eight"]'}
WRITE = """\
writer = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER"{subfolder})
{lines}"""
WORDS = {"image": "pictures", "audio": "sounds", "text": "text"}


def card(bundle: Bundle) -> str:
    """README.md, with the block that model hubs read."""
    about = {"source": bundle.source, "made_with": bundle.made_with}
    if not bundle.whole:
        return PART.format(**about, holds=", ".join(bundle.components), use=_use(bundle))
    tasks = [item.task for item in bundle.run.generative]
    return MODEL.format(
        **about,
        tag="zero-shot-image-classification" if "image" in bundle.modalities else "feature-extraction",
        reads=", ".join(WORDS[name] for name in bundle.modalities),
        first=bundle.modalities[0],
        dim=bundle.run.model.embed_dim,
        writes=f"; it writes {', '.join(f'`{task}`' for task in tasks)}" if tasks else "",
        codecs=CODECS if "codecs" in bundle.components else "",
        lines="\n".join(_transformers(bundle, tasks)),
    )


def _use(bundle: Bundle) -> str:
    """The line that a person would copy, of a part alone."""
    if not bundle.modalities:
        return 'trunk = mmfm.native("path/of/this/folder")  # for a configuration: Model(trunk=trunk, ...)'
    return f'encoder = mmfm.load_encoder("{bundle.modalities[0]}", "path/of/this/folder")'


def _transformers(bundle: Bundle, tasks: list[str]) -> list[str]:
    """What is done with the model, and with one that writes."""
    lines = [EMBED.format(name, GIVEN[name]) for name in bundle.modalities]
    inputs = {
        ">text": 'tokenizer("for", return_tensors="pt")',
        "image>text": f"processor({GIVEN['image']}, return_tensors='pt')",
    }
    ways = [f"tokenizer.decode(writer.generate(**{inputs[task]})[0])" for task in inputs if task in tasks]
    subfolder = f', subfolder="{WRITER}"' * bool(bundle.reader)
    return lines + [WRITE.format(subfolder=subfolder, lines="\n".join(ways))] * bool(ways)
