"""The file of code that lies in every folder: it imports this package, for programs that never do so themselves.

transformers runs it where it is told to trust the folder's code. It holds no code of the model, so none can grow old.
"""

from pathlib import Path

NAME = "modeling_mmfm"
CODE = '''"""mmfm's classes, for programs that load this folder with remote code; mmfm itself must be installed."""

from mmfm.export.hf import (  # noqa: F401
    MMFMConfig,
    MMFMFeatureExtractor,
    MMFMForCausalLM,
    MMFMImageProcessor,
    MMFMModel,
    MMFMProcessor,
    register,
)

register()  # the parts of a processor are looked up by name
'''


def write_stub(folder: str | Path) -> None:
    (Path(folder) / f"{NAME}.py").write_text(CODE, encoding="utf-8")


def auto_map(**names: str) -> dict[str, str]:
    """Where each of transformers' Auto classes finds ours: auto_map(AutoModel="MMFMModel")."""
    return {auto: f"{NAME}.{name}" for auto, name in names.items()}


class Foreign:
    """transformers copies the source files of classes that it loaded by remote code; ours stay in their package."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: whoever saves one of these writes the stub instead."""
