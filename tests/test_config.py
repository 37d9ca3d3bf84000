"""A run is checked when it is built, and survives JSON exactly or not at all."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mmfm import config
from mmfm.config import (
    Augment,
    Checked,
    Conformer,
    Contrastive,
    Data,
    Eval,
    Generative,
    ImagePreprocess,
    Mel,
    Model,
    Optim,
    Parallel,
    RemoteCache,
    Run,
    Source,
    Text,
    TextTower,
    Trunk,
    UserError,
    Vit,
)
from mmfm.config.load import read_run
from mmfm.config.serialization import from_json, to_json

ROOT = Path(__file__).parent.parent
FULL = Run(
    name="full",
    seed=7,
    model=Model(image=None, audio=Conformer(mel=Mel(high_hz=3_800.0)), tokenizer="a.json", dropout=0.1),
    data=Data(
        train=(
            Source(shards="a", modalities=("audio", "text"), weight=3, texts=(Text(field="captions.fr", weight=2.0),)),
            Source(shards="b", modalities=(), name="second"),
        ),
        batch_size=64,
        remote_cache=RemoteCache(folder="shards", limit_gb=0.5),
    ),
    contrastive=(Contrastive(pair=("audio", "text"), loss="sigmoid", weight=0.5),),
    generative=(Generative(task="audio>text"), Generative(task=">text", weight=0.1)),
    passes="two",
    optim=Optim(lr=1e-4, betas=(0.8, 0.9)),
    eval=Eval(templates=("{}", "a sound of {}")),
)
RUNS = [FULL, Run(name="plain"), *map(read_run, sorted((ROOT / "configs").glob("*.py")))]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_json_gives_back_the_same_run(run: Run) -> None:
    """Every value, `None` towers and nested tuples included, is equal after a round trip; so is the text."""
    assert from_json(to_json(run)) == run
    assert to_json(from_json(to_json(run))) == to_json(run)


def test_json_holds_defaults_too() -> None:
    """A default that changes later cannot change an old run: its value is in the file."""
    assert json.loads(to_json(Run(name="plain")))["optim"]["lr"] == Optim().lr


def edited(*path: str | int, value: Any = None, drop: bool = False) -> str:
    """The JSON of FULL with one place changed."""
    tree = json.loads(to_json(FULL))
    *way, last = path
    owner = tree
    for name in way:
        owner = owner[name]
    if drop:
        del owner[last]
    else:
        owner[last] = value
    return json.dumps(tree)


MISREAD = {
    "unknown key": (
        edited("optim", "momentum", value=0.9),
        "run.json.optim: unknown key momentum; Optim has steps",
    ),
    "missing key": (
        edited("name", drop=True),
        "run.json: missing key of Run; add name",
    ),
    "text for a number": (edited("seed", value="7"), "run.json.seed: '7' should be of type int"),
    "fraction for an int": (edited("seed", value=7.5), "run.json.seed: 7.5 should be of type int"),
    "bool for an int": (edited("seed", value=True), "run.json.seed: True should be of type int"),
    "number for a text": (edited("out", value=3), "run.json.out: 3 should be of type str"),
    "null for required": (edited("name", value=None), "run.json.name: None should be of type str"),
    "none of the literals": (edited("passes", value="three"), "run.json.passes: 'three' is none of 'one', 'two'"),
    "object for a list": (edited("generative", value={}), "run.json.generative: {} should be a list"),
    "list for an object": (
        edited("optim", value=[]),
        "run.json.optim: [] should be an object with the fields",
    ),
    "too many in a pair": (edited("optim", "betas", value=[1, 2, 3]), "run.json.optim.betas: [1, 2, 3] should have 2"),
    "deep in a list": (edited("data", "train", 1, "weight", value="x"), "run.json.data.train[1].weight: 'x' should be"),
    "not finite": (edited("optim", "lr", value=float("nan")), "run.json is not strict JSON (NaN is no JSON number)"),
    "infinite": (
        edited("optim", "lr").replace('"lr": null', '"lr": 1e999'),
        "optim.lr: inf is no finite number",
    ),
    "cut": (to_json(FULL)[:99], "run.json is not strict JSON"),
    "a class": (edited("model", "class_path", value="os.system"), "run.json.model: unknown key class_path"),
    "breaks a rule": (edited("optim", "lr", value=-1.0), "Optim.lr=-1.0 must be greater than 0"),
}


@pytest.mark.parametrize(("text", "words"), MISREAD.values(), ids=MISREAD)
def test_json_is_strict(text: str, words: str) -> None:
    """What is not exactly a run is refused, in one line that names the place, the value and the rule."""
    with pytest.raises(UserError) as caught:
        from_json(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_of_an_earlier_version_opens() -> None:
    """What it lacks is as it was before there was a choice: the default, deep inside too."""
    tree = json.loads(to_json(Run(name="old")))
    del tree["optim"]["param_groups"], tree["model"]["image"]["prefix"], tree["model"]["connector_dropout"]
    assert from_json(json.dumps(tree)) == Run(name="old")


def test_what_a_run_had_in_optim_is_found_in_parallel() -> None:
    """Where an earlier version kept it; a switch there is a choice here."""
    tree = json.loads(to_json(Run(name="old")))
    del tree["parallel"]
    tree["optim"] |= {"micro_batch": 4, "activation_checkpointing": True}
    assert from_json(json.dumps(tree)).parallel == Parallel(micro_batch=4, activation_checkpointing="full")
    tree["optim"]["activation_checkpointing"] = False
    assert from_json(json.dumps(tree)).parallel == Parallel(micro_batch=4)


def test_batches_of_one_source_need_no_common_multiple() -> None:
    """Shares count batches then, so that any batch will do; the same shares per sample are refused."""
    assert replace(FULL.data, batch_size=6, mix_by="batch").batch_size == 6
    with pytest.raises(UserError, match="multiple of the sources' shares"):
        replace(FULL.data, batch_size=6)


def test_a_whole_number_stands_for_a_float() -> None:
    """JSON writers drop the .0; the value is a float again after reading."""
    lr = from_json(edited("optim", "lr", value=1)).optim.lr
    assert lr == 1.0 and type(lr) is float


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "patch": (lambda: Vit(height_px=30), "30 px is no multiple of patch_px=16"),
    "vit heads": (lambda: Vit(width=100), "width=100 is no multiple of heads=6"),
    "vit zero": (lambda: Vit(depth=0), "Vit.depth=0 must be greater than 0"),
    "gaps": (lambda: Mel(hop_ms=30.0), "hop_ms=30.0 leaves gaps: it must not exceed window_ms=25.0"),
    "band": (lambda: Mel(rate_hz=8_000), "must be rising and end by half of rate_hz=8000"),
    "falling band": (lambda: Mel(low_hz=400.0, high_hz=300.0), "the band 400.0-300.0 Hz must be rising"),
    "kernel": (lambda: Conformer(kernel=4), "kernel=4 must be odd"),
    "conformer heads": (lambda: Conformer(width=90), "width=90 is no multiple of heads=4"),
    "text heads": (lambda: TextTower(width=100), "width=100 is no multiple of heads=6"),
    "rotary": (lambda: Trunk(width=18, heads=6), "even width per head, not 3"),
    "kv heads": (lambda: Trunk(kv_heads=4), "heads=6 is no multiple of kv_heads=4"),
    "dropout": (lambda: Model(dropout=1.0), "Model.dropout=1.0 must be at least 0 and below 1"),
    "codes": (lambda: Model(image_codes=-1), "must not be negative"),
    "augment": (lambda: Augment(speed=-0.1), "Augment.speed=-0.1 must not be negative"),
    "modality": (lambda: Source(shards="a", modalities=("video",)), "names 'video'; modalities are image, audio, text"),
    "share": (lambda: Source(shards="a", modalities=(), weight=0), "Source.weight=0 must be greater than 0"),
    "batch": (
        lambda: replace(FULL.data, batch_size=6),
        "Data.batch_size=6 must be a multiple of the sources' shares together (4)",
    ),
    "text": (lambda: Text(field=""), 'Text.field is empty; name "txt"'),
    "text weight": (lambda: Text(field="txt", weight=0.0), "Text.weight=0.0 must be greater than 0"),
    "store": (lambda: RemoteCache(limit_gb=0.0), "RemoteCache.limit_gb=0.0 must be greater than 0"),
    "most bad": (lambda: Data(max_bad_fraction=1.5), "Data.max_bad_fraction=1.5 is a fraction"),
    "shuffle": (lambda: Data(shuffle_buffer=0), "Data.shuffle_buffer=0 must be greater than 0"),
    "crop": (lambda: Augment(crop=1.5), "Augment.crop=1.5 is a fraction: at most 1"),
    "crop seconds": (lambda: Data(crop_seconds=-1.0), "Data.crop_seconds=-1.0 must not be negative"),
    "sources of one name": (
        lambda: Data(train=(Source(shards="a", modalities=()),) * 2),
        "two sources are called 'a'; give each a name of its own",
    ),
    "profile": (
        lambda: Run(name="a", optim=Optim(steps=20, warmup_steps=1), profile_steps=(10, 21)),
        "Run.profile_steps=(10, 21) must be two steps from 1 to optim.steps=20, the first and the last",
    ),
    "keep": (
        lambda: Run(name="a", save_every_steps=10, keep_every_steps=25),
        "Run.keep_every_steps=25 is no multiple of save_every_steps=10",
    ),
    "minutes": (lambda: Run(name="a", save_every_minutes=-1.0), "Run.save_every_minutes=-1.0 must not be negative"),
    "workers": (lambda: Data(num_workers=-1), "Data.num_workers=-1 must not be negative"),
    "pair": (lambda: Contrastive(pair=("image", "image")), "must name two different modalities"),
    "pair names": (lambda: Contrastive(pair=("image", "smell")), "names 'smell'"),
    "weight": (lambda: Generative(task=">text", weight=-1.0), "Generative.weight=-1.0 must not be negative"),
    "warm-up": (lambda: Optim(steps=100), "Optim.warmup_steps=100 must be below steps=100"),
    "floor": (lambda: Optim(min_lr_ratio=2.0), "Optim.min_lr_ratio=2.0 must be between 0 and 1"),
    "betas": (lambda: Optim(betas=(0.9, 1.0)), "Optim.betas=(0.9, 1.0) must be at least 0 and below 1 each"),
    "decay": (lambda: Optim(weight_decay=-0.1), "Optim.weight_decay=-0.1 must not be negative"),
    "seed": (lambda: Run(name="a", seed=-1), "Run.seed=-1 must be at least 0"),
    "every": (lambda: Eval(every_steps=-1), "Eval.every_steps=-1 must not be negative"),
    "template": (lambda: Eval(templates=("a photo",)), "'a photo' has no {} for the name of the class"),
    "name": (lambda: Run(name="a/b"), "Run.name='a/b' must be a plain folder name"),
    "no name": (lambda: Run(name=""), "Run.name='' must be a plain folder name"),
    "twice": (lambda: replace(FULL, generative=(Generative(task=">text"),) * 2), "an objective is listed twice"),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
def test_a_configuration_checks_itself(make: Callable[[], Any], words: str) -> None:
    """A value that breaks a rule is refused when it is built, by the line that says so."""
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# In a process of its own, as the tests' own check of annotations would refuse these values first.
MISTYPED = {
    'Data(mix_by="epoch")': "Data.mix_by='epoch' is none of 'sample', 'batch'",
    'Run(name="a", passes="three")': "Run.passes='three' is none of 'one', 'two'",
    'Run(name="a", accelerator="tpu")': "Run.accelerator='tpu' is none of",
    'Optim(precision="fp8")': "Optim.precision='fp8' is none of",
    'Contrastive(pair=("image", "text"), loss="margin")': "Contrastive.loss='margin' is none of",
    "Optim(steps=1e2)": "Optim.steps=100.0 should be a whole number, such as 100",
    "Optim(steps=True)": "Optim.steps=True should be a whole number, not a bool",
    'Optim(lr="1e-3")': "Optim.lr='1e-3' should be a number, not a str",
    'Optim(lr=float("nan"))': "Optim.lr=nan is no finite number",
    "Optim(betas=(0.9, 0.98, 0.99))": "Optim.betas=(0.9, 0.98, 0.99) should have 2 entries, not 3",
    'Source(shards=["a"], modalities=("text",))': "Source.shards=['a'] should be a text, not a list",
    'Source(shards="a", modalities="text")': "Source.modalities='text' should be a tuple, such as ('text',)",
    'Data(train=Source(shards="a", modalities=()))': "Data.train=Source(",
    'Data(train=("a",))': "Data.train[0]='a' should be a Source",
    "Data(augment=None)": "Data.augment=None should be a Augment",
    "Model(text=Trunk())": "should be one of TextTower, Tower, Embedded, None",
    "Model(image=3)": "Model.image=3 should be one of Vit, Tower, None",
    "Trunk(rope_scaling=None)": "Trunk.rope_scaling=None should be a tuple",
    'KNN(train=ClassFolders(), test="pets")': "KNN.test='pets' should be one of Tars, ClassFolders, Table",
    "Classify(data=ClassFolders(path=3))": "ClassFolders.path=3 should be a text",
    'Suite(name="a", tasks=Retrieve(data=Coco(annotations="a", media="b")))': "Suite.tasks=Retrieve(",
    'Suite(name="a", tasks=("b",))': "Suite.tasks[0]='b' should be one of",
    'GenerationConfig(max_tokens="8")': "GenerationConfig.max_tokens='8' should be a whole number, not a str",
    "GenerationConfig(temperature=None)": "GenerationConfig.temperature=None should be a number",
}


def test_types_are_checked_as_strictly_in_python() -> None:
    """Each is refused when it is built, by a line that names the field; it would train and never open again."""
    code = f"""
import json
import re
from mmfm.evals.suite import *
from mmfm.generation.generation_config import GenerationConfig
from mmfm.config import *
def told(text):
    try:
        return f"built {{eval(text)}}"
    except UserError as why:
        return str(why)
print(json.dumps([told(text) for text in {list(MISTYPED)!r}]))
listed = Data(train=[Source(shards=__import__("pathlib").Path("a"), modalities=["text"])], max_seconds=3)
assert listed == Data(train=(Source(shards="a", modalities=("text",)),), max_seconds=3.0) and hash(listed), listed
assert type(listed.max_seconds) is float
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for (text, words), told in zip(MISTYPED.items(), json.loads(done.stdout), strict=True):
        assert words in told and "built" not in told, (text, told)


def kinds(owner: type = Run, seen: frozenset[type] = frozenset()) -> set[type]:
    """All dataclasses that a run can hold."""
    found = {owner}
    for hint in get_type_hints(owner).values():
        for kind in (hint, *get_args(hint), *(inner for part in get_args(hint) for inner in get_args(part))):
            if is_dataclass(kind) and isinstance(kind, type) and kind not in seen | found:
                found |= kinds(kind, seen | found)
    return found


def test_all_parts_of_a_run_are_checked() -> None:
    """None is forgotten; also the rules of its own still hold after the check of types."""
    assert len(kinds()) > 20
    assert all(issubclass(kind, Checked) for kind in kinds()), [k for k in kinds() if not issubclass(k, Checked)]


@pytest.mark.parametrize("kind", [Run, Model, Data, Optim, Parallel, Eval])
def test_any_missing_choice_takes_its_default(kind: type) -> None:
    """A file of an earlier version lacks it: every field that has a default is filled, nested dataclasses too."""
    there = [f for f in fields(kind) if not (f.default is MISSING and f.default_factory is MISSING)]
    assert len(there) >= len(fields(kind)) - 1
    for spec in there:
        tree = json.loads(to_json(Run(name="old")))
        del (tree if kind is Run else tree[kind.__name__.lower()])[spec.name]
        assert from_json(json.dumps(tree)) == Run(name="old"), spec.name


def test_pictures_are_brought_to_size_as_ever() -> None:
    """A tower of ours that says nothing of it takes bicubic pixels in -1..1, as before there was a choice."""
    seen = Vit().pixels
    assert (seen.interpolation, seen.crop_pct, seen.mean, seen.std) == ("bicubic", 1.0, (0.5,), (0.5,))
    assert seen == ImagePreprocess()


@pytest.mark.parametrize("path", sorted(Path(config.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_help_has_all_of_a_comment(path):
    """`mmfm train --help` shows the comment beside a field, or all of those above it: none goes on below a field, is
    within parentheses, or stands above several fields, each of which would have it."""
    field = r"    \w+: [^\n#]+ = [^\n#]*"  # and no comment
    text = path.read_text()
    lost, several = rf"\n    # [^\n]*\n(?!    # |{field}\n)", rf"\n    # [^\n]*\n{field}\n{field}\n"
    for odd in (lost, rf"\n{field}\(\n[^\n]*#", several):
        assert not re.search(odd, text), re.search(odd, text)
