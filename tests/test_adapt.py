"""Pretrained towers inside a run: what is locked stays, what is kept is the same, and no source is needed twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from toys import toy_config

import mmfm
from mmfm.config import Augment, Contrastive, Data, Eval, Generative, Optim, ParamGroup, Run, Source, Tower, UserError
from mmfm.config.task import Task, parse
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch, Ids
from mmfm.data.decode import Example, collate
from mmfm.export import program
from mmfm.export.graphs import graphs
from mmfm.generation import GenerationConfig, fill
from mmfm.models.imported import ImportedTower
from mmfm.models.model import build
from mmfm.objectives.task_pass import forward_task
from mmfm.training import fit
from mmfm.training.initialize import begin, prepare
from mmfm.training.module import JointModule

WORDS = ("zero", "one", "two", "three")
TONES_HZ = (300, 700, 1_500, 3_000)


def random_weights(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Away from the neutral start, so that no norm or bias hides behind a one or a zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Three tiny models as transformers saves them: ViT, BERT with its tokenizer, wav2vec 2.0."""
    root = tmp_path_factory.mktemp("sources")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, num_channels=3, **small))
    random_weights(vit, 1).save_pretrained(root / "image")
    sides = {"height": 8, "width": 8}
    pixels = transformers.ViTImageProcessor(size=sides, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    pixels.save_pretrained(root / "image")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "a", "##b"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **marks).save_pretrained(root / "text")
    bert = transformers.BertConfig(vocab_size=len(names), max_position_embeddings=16, **small)
    random_weights(transformers.BertModel(bert), 2).save_pretrained(root / "text")
    waves = transformers.Wav2Vec2Config(
        conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(5, 4), num_feat_extract_layers=2, conv_bias=True,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, do_stable_layer_norm=True,
        feat_extract_norm="layer", **small,
    )  # fmt: skip
    random_weights(transformers.Wav2Vec2Model(waves), 3).save_pretrained(root / "audio")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    extractor.save_pretrained(root / "audio")
    return {name: root / name for name in ("image", "text", "audio")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, write_shard, encode_image, encode_audio, sine) -> Path:
    """Four things: a bright quarter of a picture, or a tone, and the name; never a picture with a tone."""
    folder, draw = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    pictures, tones = {}, {}
    for i in range(32):
        pixels = draw.integers(0, 60, (8, 8, 3), dtype=np.uint8)
        pixels[:, 2 * (i % 4) : 2 * (i % 4) + 2] += 150
        wave = sine(TONES_HZ[i % 4], 0.1) + 0.02 * draw.standard_normal(1_600)
        pictures[f"{i:03d}"] = {"png": encode_image(pixels), "txt": WORDS[i % 4].encode()}
        tones[f"{i:03d}"] = {"wav": encode_audio(wave.astype(np.float32)), "txt": WORDS[i % 4].encode()}
    write_shard(folder / "image.tar", pictures)
    write_shard(folder / "audio.tar", tones)
    return folder


@pytest.fixture
def run(sources, shards, tmp_path) -> Run:
    towers = {name: Tower(source=str(path)) for name, path in sources.items()}
    return Run(
        name="toy",
        out=str(tmp_path),
        model=toy_config(**towers, dropout=0.1),
        data=Data(
            train=(
                Source(shards=str(shards / "image.tar"), modalities=("image", "text")),
                Source(shards=str(shards / "audio.tar"), modalities=("audio", "text")),
            ),
            batch_size=16,
            num_workers=0,
        ),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task=">text")),
        optim=Optim(
            steps=4, lr=3e-3, warmup_steps=1, param_groups=(ParamGroup(pattern="towers.image.*", lr_scale=0.0),)
        ),
        eval=Eval(every_steps=0),
        save_every_steps=2,
        keep_checkpoints=5,
        accelerator="cpu",
    )


def a_batch(run: Run, tokenizer, size: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(5)
    examples = [
        Example(
            key=str(i),
            image=torch.randint(0, 256, (3, 8, 8), generator=draw, dtype=torch.uint8),
            audio=torch.randn(800 + 160 * i, generator=draw),
            text=" ".join(WORDS[: 1 + i % 4]),
        )
        for i in range(size)
    ]
    return collate(examples, tokenizer)


def prepared_model(run: Run):
    prepared = prepare(run)
    torch.manual_seed(0)
    model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    begin(model, prepared)
    return prepared, model.eval()


def test_towers_say_what_their_library_says(run, sources):
    """Tokens of each tower inside our model are those of transformers' own model, on input made by its processor."""
    prepared, model = prepared_model(run)
    batch = a_batch(run, prepared.tokenizer)
    with torch.no_grad():
        image = transformers.ViTModel.from_pretrained(sources["image"]).eval()
        pixels = (batch.items["image"].x / 255 - 0.4) / 0.3
        theirs = image(pixels).last_hidden_state
        assert (model.tokens("image", batch.items["image"]).x - theirs).abs().max() < 1e-5
        text = transformers.BertModel.from_pretrained(sources["text"]).eval()
        words = transformers.AutoTokenizer.from_pretrained(sources["text"])
        asked = words(list(batch.texts), padding=True, return_tensors="pt")
        theirs, ours = text(**asked).last_hidden_state, model.tokens("text", batch.items["text"])
        assert torch.equal(asked["attention_mask"].bool(), ours.keep)
        assert (ours.x - theirs)[ours.keep].abs().max() < 1e-5
        audio = transformers.Wav2Vec2Model.from_pretrained(sources["audio"]).eval()
        extract = transformers.AutoFeatureExtractor.from_pretrained(sources["audio"])
        ours = model.tokens("audio", batch.items["audio"])
        for row, (x, keep) in enumerate(zip(batch.items["audio"].x, batch.items["audio"].keep, strict=True)):
            alone = extract(x[keep].numpy(), sampling_rate=16_000, return_tensors="pt")
            theirs = audio(alone["input_values"]).last_hidden_state[0]
            assert int(ours.keep[row].sum()) == len(theirs)
            assert (ours.x[row][ours.keep[row]] - theirs).abs().max() < 1e-4


def test_a_tower_reads_its_own_ids_and_the_model_writes_its_own(run):
    """Text is read by the tower's tokenizer and written by the model's: two sets of ids from one text."""
    prepared, model = prepared_model(run)
    items = a_batch(run, prepared.tokenizer).items["text"]
    assert items.x[1][items.keep[1]].tolist() == [2, 5, 6, 3]  # [CLS] zero one [SEP]
    assert items.written is not None
    assert bytes(items.written.ids[1][items.written.keep[1]].tolist()) == b"zero one"
    for part in ("image", None):
        sources = () if part is None else (part,)
        reading = forward_task(model, Task(sources, "text"), a_batch(run, prepared.tokenizer))
        assert reading is not None and len(reading.labels) == int(items.written.keep.sum()) + len(items.rows)


def test_locked_parts_learn_nothing_and_rest(run):
    """Rate 0: after training the weights are the source's and dropout is off; everything else has moved."""
    prepared, model = prepared_model(run)
    module = JointModule(prepared.run, model).train()
    assert not any(part.training for part in model.towers["image"].modules())
    assert all(part.training for part in model.towers["text"].modules())
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    sum(module.objectives(a_batch(run, prepared.tokenizer)).values()).backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith("towers.image.") for name in moved)
    assert any(name.startswith("towers.text.") for name in moved) and "connectors.image.weight" in moved


def test_the_last_pattern_counts(run):
    """One block of a locked tower learns at a tenth of the rate, and only that; the groups are told so."""
    some = (ParamGroup(pattern="towers.*", lr_scale=0.0), ParamGroup(pattern="towers.text.*layer.1.*", lr_scale=0.1))
    prepared, model = prepared_model(replace(run, optim=replace(run.optim, param_groups=some)))
    module = JointModule(prepared.run, model)
    rates = {
        id(p): group["initial_lr"] if "initial_lr" in group else group["lr"]
        for group in module.configure_optimizers()["optimizer"].param_groups
        for p in group["params"]
    }
    names = {name: rates.get(id(p), 0.0) for name, p in model.named_parameters()}
    towers = {name for name, rate in names.items() if name.startswith("towers.") and rate}
    assert towers and all("text" in name and "layer.1." in name for name in towers)
    assert all(names[name] == pytest.approx(3e-4) for name in towers) and names["connectors.text.weight"] == 3e-3


def test_kept_tokens_are_the_same_and_are_made_once(run, tmp_path):
    """Equal embeddings with and without; the second time the encoder is not asked; a damaged file is made again."""
    locked = replace(run, optim=replace(run.optim, param_groups=(ParamGroup(pattern="towers.*", lr_scale=0.0),)))
    parts = {n: replace(getattr(run.model, n), feature_cache_dir=str(tmp_path / n)) for n in ("image", "audio", "text")}
    plain, model = prepared_model(locked)
    _, keeping = prepared_model(replace(locked, model=replace(locked.model, **parts)))
    JointModule(replace(plain.run, optim=locked.optim), keeping)
    batch, asked = a_batch(run, plain.tokenizer), []
    for name, tower in keeping.towers.items():
        assert isinstance(tower, ImportedTower)
        tower.encoder.register_forward_hook(lambda *_, name=name: asked.append(name))
    for turn in range(3):
        for name in ("image", "audio", "text"):
            want, got = model.tokens(name, batch.items[name]), keeping.tokens(name, batch.items[name])
            assert torch.equal(want.keep, got.keep)
            assert (want.x[want.keep] - got.x[got.keep]).abs().max() < 1e-5, name
        if turn == 1:
            assert sorted(asked) == ["audio", "image", "text"]
            next((tmp_path / "image").rglob("*.safetensors")).write_bytes(b"cut")
    assert sorted(asked) == ["audio", "image", "image", "text"]
    assert len(list((tmp_path / "audio").rglob("*.safetensors"))) == 6


def test_an_exported_graph_keeps_no_tokens(run, tmp_path, monkeypatch):
    """It is traced, which no file could be written or read in, and the model goes on keeping."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # while it is traced its sizes are symbols
    image = replace(run.model.image, feature_cache_dir=str(tmp_path / "image"))
    prepared, model = prepared_model(replace(run, model=replace(run.model, image=image)))
    (graph,) = graphs(model.eval(), prepared.run.model, ("image",), prepared.tokenizer.size)
    traced = program.trace(graph).module()
    pixels = graph.example(graph.checked[0])
    torch.testing.assert_close(traced(*pixels), graph.module(*pixels), rtol=0, atol=1e-4)
    assert not list(tmp_path.iterdir()) and model.towers["image"].kept is not None


@pytest.mark.parametrize("task", ["image>text~", "audio>text~", "image,audio>text~"])
def test_filling_in_behind_kept_tokens_is_as_without(run, tmp_path, task):
    """Training's loss and its gradients, and the ids that are filled in: made and kept, read back, and never kept."""
    locked = replace(
        run,
        generative=(Generative(task=task),),
        optim=replace(run.optim, param_groups=(ParamGroup(pattern="towers.*", lr_scale=0.0),)),
    )
    parts = {n: replace(getattr(run.model, n), feature_cache_dir=str(tmp_path / n)) for n in ("image", "audio")}
    prepared, plain = prepared_model(locked)
    _, keeping = prepared_model(replace(locked, model=replace(locked.model, **parts)))
    batch, draw, asked = a_batch(run, prepared.tokenizer), torch.Generator().manual_seed(1), []
    drawn = {n: replace(x, draws=torch.rand(6, DRAWS, generator=draw)) for n, x in batch.items.items()}
    batch = replace(batch, items=drawn)
    given = Ids(torch.arange(24).view(6, 4) % 9, torch.ones(6, 4, dtype=torch.bool))
    hidden = torch.arange(4).expand(6, 4) >= torch.arange(6)[:, None] % 3
    found = []
    for model in (plain, keeping, keeping):
        JointModule(replace(prepared.run, generative=locked.generative, optim=locked.optim), model)
        model.eval()
        hooks = [tower.encoder.register_forward_hook(lambda *_: asked.append(1)) for tower in model.towers.values()]
        reading = forward_task(model, parse(task), batch)
        loss = torch.nn.functional.cross_entropy(model.logits(reading.states), reading.labels)
        grad = torch.autograd.grad(loss, model.trunk.blocks[0].attn.qkv.weight)[0]
        rows, ids = fill(model, parse(task), batch, given, hidden, GenerationConfig(num_steps=3))
        found.append((loss.detach(), grad, torch.tensor(rows), ids))
        for hook in hooks:
            hook.remove()
    reads = task.count(",") + 1
    assert len(asked) == 3 * reads and (found[0][3] != given.ids).any()  # twice without, once to be kept
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_tokens_of_what_learns_are_not_kept(run, tmp_path):
    parts = {"text": replace(run.model.text, feature_cache_dir=str(tmp_path / "kept"))}
    prepared, model = prepared_model(replace(run, model=replace(run.model, **parts)))
    with pytest.raises(UserError, match="feature_cache_dir of a tower that trains would soon be wrong; lock it"):
        model.tokens("text", a_batch(run, prepared.tokenizer).items["text"])


def test_a_run_needs_its_sources_once(run, sources, tmp_path):
    """Trained, its sources removed: it loads, embeds as before, and resumes to the weights of a run never stopped."""
    copies = {name: shutil.copytree(path, tmp_path / "copy" / name) for name, path in sources.items()}
    towers = {name: Tower(source=str(path)) for name, path in copies.items()}
    mine = replace(run, model=replace(run.model, **towers), optim=replace(run.optim, steps=4))
    folder = fit.train(mine)
    saved = json.loads((folder / "run.json").read_text())
    assert saved["model"]["text"]["blueprint"]["words"]["end"] == [3]
    shutil.rmtree(tmp_path / "copy")
    model, again = mmfm.load(folder), mmfm.load(folder, step=4)
    for texts in (["one two"], ["three", "a"]):
        assert torch.equal(model.encode_text(texts), again.encode_text(texts))
    whole = load_file(folder / "checkpoints/step-00000004/model.safetensors")
    shutil.rmtree(folder / "checkpoints/step-00000004")
    fit.train(mine, resume=True)
    for name, value in load_file(folder / "checkpoints/step-00000004/model.safetensors").items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"param_groups": (ParamGroup(pattern="tower.image.*", lr_scale=0.0),)},
            "no parameter is called 'tower.image.\\*'; the nearest is",
        ),
        ({"param_groups": (ParamGroup(pattern="*", lr_scale=0.0),)}, "lock every parameter"),
    ],
)
def test_wrong_rates_are_named(run, change, words):
    prepared, model = prepared_model(run)
    with pytest.raises(UserError, match=words):
        JointModule(replace(prepared.run, optim=replace(run.optim, **change)), model)


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (Augment(speed=0.1), "augment.speed changes our own log-mel frames"),
        (Augment(translate=0.1), "augment.translate makes every picture new"),
    ],
)
def test_augmentation_that_a_tower_cannot_take_is_refused(run, tmp_path, augment, words):
    """What would do nothing, or would never be kept twice, is said before training."""
    image = replace(run.model.image, feature_cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=words):
        prepare(replace(run, model=replace(run.model, image=image), data=replace(run.data, augment=augment)))


def test_a_tokenizer_that_is_not_the_towers_is_refused(run, sources):
    """run.json names the tokenizer by its hash."""
    from mmfm.preprocessing.tokenizer import parse_reader

    words = prepare(run).run.model.text.words
    with pytest.raises(UserError, match="is not the tokenizer of this tower"):
        parse_reader((sources["text"] / "tokenizer.json").read_text() + " ", words, "tokenizer.json")


def test_a_pooled_tower_gives_the_mean_of_its_real_tokens(run):
    """One token a text, whatever padding its batch has."""
    pooled = replace(run.model, text=replace(run.model.text, pool="mean"))
    prepared, model = prepared_model(run)
    _, pooling = prepared_model(replace(run, model=pooled))
    items = a_batch(run, prepared.tokenizer).items["text"]
    every, one = model.tokens("text", items), pooling.tokens("text", items)
    assert one.keep.shape == (len(items.rows), 1) and one.keep.all()
    for row, keep in enumerate(every.keep):
        assert (one.x[row, 0] - every.x[row][keep].mean(0)).abs().max() < 1e-6


def test_a_loaded_run_keeps_tokens_too(run, tmp_path):
    """Scoring reads what training kept: opened again, the locked towers' encoders are not asked."""
    locked = replace(
        run,
        optim=replace(run.optim, steps=1, warmup_steps=0, param_groups=(ParamGroup(pattern="towers.*", lr_scale=0.0),)),
    )
    text = replace(run.model.text, feature_cache_dir=str(tmp_path / "kept"))
    folder = fit.train(replace(locked, model=replace(run.model, text=text), save_every_steps=1))
    model, asked = mmfm.load(folder), []
    model.core.towers["text"].encoder.register_forward_hook(lambda *_: asked.append(1))
    model.encode_text(list(WORDS))
    assert not asked and model.encode_text(["a b"]).shape == (1, 8) and asked == [1]


def test_stacked_tokens_are_neighbours_side_by_side(run):
    """Three in a row are one, with zeros for what is padding, whatever the batch is padded to."""
    stacked = replace(run.model, text=replace(run.model.text, frame_stack=3))
    prepared, model = prepared_model(run)
    _, stacking = prepared_model(replace(run, model=stacked))
    items = a_batch(run, prepared.tokenizer).items["text"]
    every, few = model.tokens("text", items), stacking.tokens("text", items)
    for row, keep in enumerate(every.keep):
        real = every.x[row][keep]
        want = torch.cat([real, torch.zeros(-len(real) % 3, 16)]).reshape(-1, 48)
        assert int(few.keep[row].sum()) == len(want) and torch.equal(few.x[row][few.keep[row]], want)
