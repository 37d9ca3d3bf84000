"""What stands beside an exported model: what it is, and how each tool takes it, in lines that can be copied."""

from mmfm.inference.interface import Interface

HEAD = """---
library_name: transformers
pipeline_tag: {tag}
---

# {name}

A model of mmfm. It reads {reads} and embeds them in one space of {dim} dimensions{writes}.
`pip install mmfm` first: the folder holds weights and settings, and its code is a stub that imports the package.

```python
import mmfm.export.hf
from transformers import {autos}

mmfm.export.hf.register()
{lines}
```
"""
LINES = {
    "image": (
        'inputs = processor(images=[picture], text=["seven", "eight"], padding=True, return_tensors="pt")\n'
        "model(**inputs).logits_per_image.softmax(-1)"
    ),
    "audio": 'model.get_audio_features(**processor(audio=[wave], return_tensors="pt")).pooler_output',
    "text": 'model.get_text_features(**tokenizer(["seven", "eight"], padding=True, return_tensors="pt")).pooler_output',
}


def card(model: Interface) -> str:
    """README.md, with the block that model hubs read."""
    reads = [name for name in ("image", "audio", "text") if name in model.modalities]
    lines = ['model = AutoModel.from_pretrained("FOLDER")', 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")']
    lines += ['processor = AutoProcessor.from_pretrained("FOLDER")'] if set(reads) - {"text"} else []
    lines += [LINES[name] for name in reads if name != "image" or "text" in reads]
    autos = ["AutoModel", *(["AutoProcessor"] if set(reads) - {"text"} else []), "AutoTokenizer"]
    if model.tasks:
        tokenizer = "tokenizer" if model.tokenizer.reader is None else "writing"
        autos.insert(1, "AutoModelForCausalLM")
        lines += ['writer = AutoModelForCausalLM.from_pretrained("FOLDER")']
        lines += [f'{tokenizer} = AutoTokenizer.from_pretrained("FOLDER", subfolder="writer")'] * (
            tokenizer == "writing"
        )
        inputs = {">text": f'{tokenizer}("for", return_tensors="pt")'}
        inputs |= {"image>text": 'processor(images=[picture], return_tensors="pt")'}
        lines += [f"{tokenizer}.decode(writer.generate(**{inputs[task]})[0])" for task in inputs if task in model.tasks]
    return HEAD.format(
        tag="zero-shot-image-classification" if "image" in reads else "feature-extraction",
        name=model.run.name,
        reads=", ".join({"image": "pictures", "audio": "sounds", "text": "text"}[name] for name in reads),
        dim=model.embed_dim,
        writes=f"; it writes {', '.join(f'`{task}`' for task in model.tasks)}" if model.tasks else "",
        autos=", ".join(autos),
        lines="\n".join(lines),
    )
