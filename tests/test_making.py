"""Anything from anything: what comes out is of its kind, and what cannot be made says why in one line."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from toys import toy_config, toy_run

from mmfm.config import AudioCodec, Generative, ImageCodec, Mel, Run, TokenizerSpec, Trunk, UserError
from mmfm.data.decode import Example, collate
from mmfm.export.bundle import bundle_of
from mmfm.export.hf.config import config_of
from mmfm.export.hf.folder import generation
from mmfm.generation.sampling import drawn_seeds
from mmfm.inference.bundle.without_paths import public
from mmfm.inference.infill import side_of
from mmfm.inference.interface import Interface, Sound
from mmfm.inference.processor import Processor
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import Reader, Tokenizer, load_tokenizer

TOKENIZER = load_tokenizer("bytes")
TASKS = (
    "image>text",
    "audio>text",
    "text>image",
    "text>audio",
    ">image",
    "audio>audio",
    "text>text",
    "image~",
    "text>image~",
    "text~",
    "audio~",
    "image,text,image>text",
)
CODECS = {
    "image_codec": ImageCodec(
        height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1, weights="runs/elsewhere"
    ),
    "audio_codec": AudioCodec(mel=Mel(bins=16), frame_stack=4, levels=(3, 3), width=16, depth=1),
}
STEP = 640  # samples of a turn of codes: 4 frames of 10 ms at 16 kHz


def codec_run(**changes: object) -> Run:
    writes = tuple(Generative(task=task, condition_dropout=0.1 if task == "text>image" else 0.0) for task in TASKS)
    return toy_run(**{"model": toy_config(**CODECS), "generative": writes, **changes})


def toy_interface(run: Run) -> Interface:
    torch.manual_seed(0)
    core = build(run.model, TOKENIZER.size, run.contrastive)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            parameter += (0.02 if "codecs" in name else 0.3) * torch.randn_like(parameter)
    return Interface(core, run, TOKENIZER).eval()


@pytest.fixture(scope="module")
def model() -> Interface:
    return toy_interface(codec_run())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip() -> Sound:
    return Sound(0.1 * torch.randn(8_100, generator=torch.Generator().manual_seed(0)), 16_000)


def pixels(picture: object) -> np.ndarray:
    assert isinstance(picture, Image.Image)
    return np.array(picture)


def test_each_kind_comes_out_as_its_codes_decode(model, picture, clip):
    """A picture of the codec's size, a sound at its rate of as many turns as were asked for, a string."""
    drawn = model.generate("text>image", text="seven", seed=3)
    assert (drawn.size, drawn.mode) == ((16, 8), "L")
    batch = Processor(model.run, TOKENIZER).batch([{"text": ["seven"]}])
    (coded,) = model.make("text>image", batch, seeds=torch.tensor([3]))
    np.testing.assert_array_equal(pixels(drawn), pixels(model.decode("image", coded.ids)))
    said = model.generate("text>audio", text="seven", max_tokens=5)
    assert said.rate_hz == 16_000 and 0 < len(said.wave) <= 5 * STEP and len(said.wave) % STEP == 0
    assert said.start == 0 and said.wave.abs().max() <= 1
    assert isinstance(model.generate("image>text", image=picture, max_tokens=3), str)
    assert isinstance(model.generate("audio>text", audio=clip, max_tokens=3), str)


def test_a_sound_is_at_most_four_seconds_unless_said(model):
    """A model that never ends stops there; a text at 64 tokens."""
    with torch.no_grad():
        weight = model.core.embedding.weight[model.core.vocabulary.end].clone()
        try:
            model.core.embedding.weight[model.core.vocabulary.end] = 0
            longest = max(model.generate("text>audio", text="a", seed=seed).seconds for seed in range(3))
        finally:
            model.core.embedding.weight[model.core.vocabulary.end] = weight
    assert longest <= 4.0


def test_a_seed_repeats_and_n_are_n_seeds(model, clip):
    """n draws in one batch are those of n calls, one for each seed; another seed draws another."""
    many = model.generate_many("text>image", text="seven", n=3, seed=5)
    alone = [model.generate("text>image", text="seven", seed=seed) for seed in (5, 6, 7)]
    assert [pixels(x).tolist() for x in many] == [pixels(x).tolist() for x in alone]
    assert len({pixels(x).tobytes() for x in many}) == 3
    sounds = model.generate_many("text>audio", text="seven", n=2, max_tokens=4, seed=1)
    again = model.generate("text>audio", text="seven", max_tokens=4, seed=2)
    assert torch.equal(sounds[1].wave, again.wave)
    fills = model.generate_many("text>image~", text="seven", n=2, seed=1)
    assert (pixels(fills[1]) == pixels(model.generate("text>image~", text="seven", seed=2))).all()


def test_a_chain_is_its_links_by_hand(model, picture):
    """Its choices are for the last link alone; the links before are made as by default, all with one seed."""
    text = model.generate("image>text", image=picture, seed=2)
    by_hand = model.generate("text>audio", text=text, seed=2, max_tokens=4, temperature=0.5)
    chained = model.generate("image>text>audio", image=picture, seed=2, max_tokens=4, temperature=0.5)
    assert torch.equal(chained.wave, by_hand.wave)
    (drawn,) = model.generate_many("image>text>image", image=picture, n=1, seed=4)
    assert (pixels(drawn) == pixels(model.generate("text>image", text=text, seed=4))).all()


def test_a_chain_of_a_batch_is_each_sample_by_itself(model, picture):
    """`make` keeps track of which sample is which where some lack the source."""
    shown = model.transform(picture)
    other = Example(key="b", image=255 - shown)
    batch = collate([Example(key="t", text="x"), Example(key="a", image=shown), other], TOKENIZER)
    found = model.make("image>text>image", batch, seeds=torch.tensor([7, 8, 9]))
    assert [item.row for item in found] == [1, 2]
    alone = model.generate("image>text>image", image=picture, seed=8)
    assert (pixels(alone) == pixels(model.decode("image", found[0].ids))).all()


def test_a_sound_goes_on_from_its_last_whole_turn(model, clip):
    """The prompt's codes come first, without the part of a turn at its end; `start` says where the rest begins."""
    more = model.generate("audio>audio", audio=clip, max_tokens=3, seed=1)
    turns = len(clip.wave) // STEP
    assert more.start == turns * STEP < len(more.wave) <= (turns + 3) * STEP
    prompt = model.encode("audio", Sound(clip.wave[: turns * STEP], 16_000))
    whole = model.core.codec("audio")
    batch = Processor(model.run, TOKENIZER).batch([{"audio": [Sound(clip.wave[: turns * STEP], 16_000)]}])
    (coded,) = model.maker.written(
        model._task("audio>audio"),
        batch,
        torch.tensor([1]),
        model.maker.how(model._task("audio>audio"), {"max_tokens": 3}),
    )
    assert coded.ids[: coded.start] == prompt and coded.start == turns
    ids = torch.tensor([coded.ids])
    wave, _ = whole.decode(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(more.wave, wave[0], rtol=0, atol=0)


def test_of_a_split_a_sound_is_continued_from_its_middle(model, clip):
    """What stands in the sample after the cut is not shown to the model: changing it changes nothing."""
    waves = [clip.wave, torch.cat([clip.wave[: 7 * STEP], 0.3 * torch.ones(len(clip.wave) - 7 * STEP)])]
    made = [
        model.make(
            "audio>audio", collate([Example(key="a", audio=wave)], TOKENIZER), seeds=torch.tensor([0]), max_tokens=3
        )
        for wave in waves
    ]
    assert made[0][0].start == 6 and made[0][0].ids[6:] == made[1][0].ids[6:]


def test_what_is_not_hidden_stays(model, picture, clip):
    """Codes of the other half of a picture, of the rest of a sound, letters of a text; what is hidden is made anew."""
    own = torch.tensor(model.encode("image", picture))
    batch = Processor(model.run, TOKENIZER).batch([{"image": [picture]}])
    (coded,) = model.make("image~", batch, seeds=torch.tensor([0]), mask="left")
    hidden = side_of("left", (2, 4))
    assert hidden.tolist() == [True, True, False, False] * 2
    assert (torch.tensor(coded.ids)[~hidden] == own[~hidden]).all()
    drawn = model.generate("image~", image=picture, mask="left")
    assert (pixels(drawn) == pixels(model.decode("image", coded.ids))).all()
    assert not (pixels(drawn) == pixels(model.generate("image~", image=picture, mask="left", seed=1))).all()
    written = model.generate("text~", text="fo__y-two")
    assert len(written.encode()) >= 9 and written.startswith("fo") and written.endswith("y-two")
    sounds = Processor(model.run, TOKENIZER).batch([{"audio": [clip]}])
    codes, (part,) = model.encode("audio", clip), model.make("audio~", sounds, seeds=torch.tensor([0]), mask="0.1-0.2")
    kept = [at for at in range(len(codes)) if at not in (2, 3, 4)]  # a turn is 40 ms
    assert [part.ids[at] for at in kept] == [codes[at] for at in kept] and part.ids != codes


def test_everything_of_a_picture_can_be_made_in_rounds(model):
    """Without a picture all of it is hidden, as with mask=1; one round chooses every place by itself."""
    blank = Image.fromarray(np.zeros((8, 16), np.uint8))
    for options in ({}, {"num_steps": 1}):
        drawn = model.generate("text>image~", text="seven", **options)
        same = model.generate("text>image~", text="seven", image=blank, mask=1.0, **options)
        assert (pixels(drawn) == pixels(same)).all()


def test_shots_are_read_in_order_of_mention(model, picture):
    """Two pictures and a text: another order of the pictures writes something else, or is at least read as another."""
    other = Image.fromarray(255 - pixels(picture))
    batches = [
        Processor(model.run, TOKENIZER).batch([{"image": pair, "text": ["x"]}])
        for pair in ([picture, other], [other, picture])
    ]
    assert batches[0].items["image"].rows.tolist() == [0, 0]
    assert torch.equal(batches[0].items["image"].x, batches[1].items["image"].x.flip(0))
    assert isinstance(model.generate("image,text,image>text", image=[picture, other], text="x", max_tokens=2), str)


def test_a_stream_joins_to_the_whole(model, picture):
    for task, given in (("image>text", {"image": picture}), ("text>image>text", {"text": "a"})):
        pieces = list(model.stream(task, seed=1, temperature=1.0, max_tokens=8, **given))
        assert "".join(pieces) == model.generate(task, seed=1, temperature=1.0, max_tokens=8, **given)


def test_what_is_made_step_by_step_is_the_same(model):
    """With a `tick` that counts codes, which ends at those of two pictures."""
    seen = []
    watched = model.generate_many("text>image", text="a", n=2, tick=lambda made, most: seen.append((made, most)))
    plain = model.generate_many("text>image", text="a", n=2)
    assert [pixels(x).tolist() for x in watched] == [pixels(x).tolist() for x in plain]
    assert seen == [(made, 16) for made in range(1, 17)]


def test_a_chain_may_end_in_rounds(model, picture):
    """Of what is not there to be filled in everything is hidden, for people and on a split."""
    batch = Processor(model.run, TOKENIZER).batch([{"image": [picture]}])
    (coded,) = model.make("image>text>image~", batch, seeds=torch.tensor([3]))
    drawn = model.generate("image>text>image~", image=picture, seed=3)
    assert (pixels(drawn) == pixels(model.decode("image", coded.ids))).all()


def test_the_one_that_is_kept_lies_nearest(model):
    """Of three draws rerank gives the one whose embedding has the largest cosine with the text's."""
    kept = model.generate("text>image", text="seven", best_of=3, seed=2)
    seeds = drawn_seeds(torch.tensor([2]), 3).tolist()
    draws = [model.generate("text>image", text="seven", seed=seed) for seed in seeds]
    cosines = model.encode_image(draws) @ model.encode_text(["seven"]).T
    assert (pixels(kept) == pixels(draws[int(cosines.argmax())])).all()


def test_guidance_of_one_is_none(model):
    """At scale 1 nothing changes; at another it does."""
    plain, one, three = (
        pixels(model.generate("text>image", text="seven", seed=1, **how))
        for how in ({}, {"guidance": 1.0}, {"guidance": 30.0})
    )
    assert (plain == one).all() and not (plain == three).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(folder / "a.png")
    soundfile.write(folder / "a.wav", np.zeros(4_000), 16_000)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


MISTAKES = {
    "a chain leads there": (
        "image>audio",
        {"image": "{files}/a.png"},
        "not trained on 'image>audio'; it writes image>text, .*; the chain 'image>text>audio' leads there",
    ),
    "nothing leads there": ("audio>image~", {}, "not trained on 'audio>image~'; it writes [^;]*$"),
    "a link": ("image>audio>text", {}, "not trained on 'image>audio'"),
    "missing": ("image,text,image>text", {"text": "x"}, "reads image, which was not given; add --image"),
    "too few": ("image,text,image>text", {"text": "x", "image": "{files}/a.png"}, "reads 2 of image.* 1 are given"),
    "a sound for a picture": ("image>text", {"image": "{files}/a.wav"}, "a.wav is a sound by its name; give .png"),
    "a picture for a sound": ("audio>text", {"audio": "{files}/a.png"}, "a.png is a picture by its name; give .wav"),
    "unreadable": ("image>text", {"image": "{files}/broken.png"}, "broken.png: "),
    "not there": ("image>text", {"image": "{files}/none.png"}, "none.png: No such file"),
    "unguided": (
        "text>audio",
        {"text": "x", "guidance": 2.0},
        r"guidance of text>audio .*condition_dropout=0\.1",
    ),
    "nothing to guide by": (">image", {"guidance": 2.0}, "guidance"),
    "rounds of writing": (
        "text>image",
        {"text": "x", "num_steps": 4},
        "rounds are for tasks that fill in, such as image~",
    ),
    "beams of filling": (
        "text>image~",
        {"text": "x", "num_beams": 2},
        "num_beams=2 means nothing",
    ),
    "length of a picture": ("text>image", {"text": "x", "max_tokens": 3}, "a picture always has as many codes"),
    "least of a picture": ("text>image", {"text": "x", "min_tokens": 3}, "min_tokens=3: a picture always has"),
    "chances of a picture": (
        "text>image",
        {"text": "x", "logprobs": True},
        "logprobs=True is of texts, and text>image",
    ),
    "chances of a sound": ("text>audio", {"text": "x", "logprobs": True}, "makes a sound, which holds none; leave it"),
    "chances of beams": (
        "image>text",
        {"image": "{files}/a.png", "logprobs": True, "num_beams": 2},
        "leave out logprobs, or the beams",
    ),
    "stop of a sound": ("text>audio", {"text": "x", "stop": (".",)}, "ends texts, and text>audio makes a sound"),
    "one stop": ("image>text", {"image": "{files}/a.png", "stop": "."}, "is one string; give several as a tuple"),
    "greedy draws": ("image>text", {"image": "{files}/a.png", "best_of": 2}, "written greedily; give temperature=1"),
    "beams and draws": ("text>image", {"text": "x", "num_beams": 2, "best_of": 2}, "give one of them"),
    "greedy nucleus": ("image>text", {"image": "{files}/a.png", "top_p": 0.5}, "top_p=0.5 is for draws"),
    "no thing to read": ("image>text", {"img": "{files}/a.png"}, "no option 'img'; try image$"),
    "no such option": ("image>text", {"picture": 1}, "no option 'picture'; use image, audio, text, mask, seed, max_"),
    "no option": ("text>image", {"text": "x", "temprature": 1.0}, "no option 'temprature'; try temperature"),
    "nothing hidden": (
        "image~",
        {"image": "{files}/a.png"},
        "say what by mask: a fraction such as 0.5",
    ),
    "hidden in vain": ("text>image", {"text": "x", "mask": 0.5}, "fills nothing in; leave it out, or ask for image~"),
    "hidden of nothing": ("image~", {"mask": 0.5}, "no picture is given to mask a part of"),
    "hidden past the end": ("audio~", {"audio": "{files}/a.wav", "mask": "3-4"}, "outside a sound of 0.28 s"),
    "a side of a sound": ("audio~", {"audio": "{files}/a.wav", "mask": "left"}, "or seconds such as 0.5-1.0"),
    "hidden twice over": ("image~", {"image": "{files}/a.png", "mask": 1.5}, "no part of a whole; give a fraction"),
    "no mark": ("text~", {"text": "forty"}, "has nothing to fill in; .* write _ for each token"),
    "no text": ("text~", {}, "fills in a text that you give: add --text"),
    "too short to go on": ("audio>audio", {"audio": "short"}, "a sound of 100 samples is too short to continue"),
    "too many": ("text>text", {"text": ["a", "b"]}, "reads 1 of text, in order of mention, and 2 are given"),
}


@pytest.mark.parametrize(("task", "given", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_made_says_why(model, files, task, given, words):
    """The value, the rule and the remedy, in one line."""
    named = {k: v.format(files=files) if isinstance(v, str) and k != "text" else v for k, v in given.items()}
    if named.get("audio") == "short":
        named["audio"] = Sound(torch.zeros(100), 16_000)
    with pytest.raises(UserError, match=words) as caught:
        model.generate(task, **named)
    assert "\n" not in str(caught.value)


def test_a_stream_takes_no_other_names_either(model, picture):
    for given, words in (({"img": picture}, "no option 'img'; try image"), ({"n": 2}, "no option 'n'; use image")):
        with pytest.raises(UserError, match=words):
            list(model.stream("image>text", **given))
    with pytest.raises(UserError, match="pieces of a text hold none; take generate"):
        list(model.stream("image>text", image=picture, logprobs=True))


def test_a_prompt_beyond_the_context_is_refused(picture):
    """Of a trunk with a window: a text for which a picture's codes leave no room, before anything is read."""
    model = toy_interface(
        codec_run(
            model=toy_config(trunk=Trunk(width=16, depth=1, heads=4, kv_heads=2, max_position_embeddings=12), **CODECS)
        )
    )
    with pytest.raises(
        UserError, match=r"a text of 26 tokens is longer than the \d+ .*max_position_embeddings.*cut it"
    ):
        model.generate("text>image", text="a text of more than twelve")


def test_a_text_that_its_tower_would_cut_is_refused(model):
    """A tower from elsewhere with a context of eight, one mark on either side: six tokens are read, seven are not."""
    words = TokenizerSpec(context=8, begin=(1,), end=(2,), pad=0, sha256="")
    tokenizer = Tokenizer(TOKENIZER.inner, Reader(TOKENIZER.inner, words, ""))
    assert Processor(model.run, tokenizer).batch([{"text": ["sixsix"]}]).items["text"].keep.sum() == 8
    with pytest.raises(
        UserError, match=r"a text of 7 tokens is longer than the 6 that are read \(the positions of .*; cut it$"
    ):
        Processor(model.run, tokenizer).batch([{"text": ["seven77"]}])


@pytest.mark.parametrize(
    ("modality", "ids", "words"),
    [
        ("image", [0] * 7 + [9], "image code 9 at place 7 is not in 0 to 8"),
        ("image", [0] * 7, "7 codes make no picture; give 8"),
        ("audio", [], "0 codes make no sound; give a multiple of 1 above 0"),
        ("audio", [3, -1], "audio code -1 at place 1 is not in 0 to 8"),
        ("video", [0], "no modality called 'video'"),
    ],
)
def test_codes_outside_the_range_are_refused(model, modality, ids, words):
    with pytest.raises(UserError, match=words):
        model.decode(modality, ids)


def test_a_model_without_codecs_says_what_it_writes(picture):
    model = toy_interface(toy_run())
    with pytest.raises(UserError, match="no codec of image; it writes text"):
        model.encode("image", picture)
    with pytest.raises(UserError, match="not trained on 'text>image'; it writes image>text, audio>text, >text"):
        model.generate("text>image", text="x")


def test_transformers_face_writes_text_alone_and_names_no_folder(model):
    """Every code is suppressed there, and where a codec's weights lay is nobody's business."""
    face = config_of(bundle_of("x", public(model.run), ("image", "trunk")), TOKENIZER.size)
    vocabulary = model.core.vocabulary
    codes = {*vocabulary.span("image"), *vocabulary.span("audio")}
    assert len(codes) == 18 and codes <= set(generation(face).suppress_tokens)
    kept = face.parsed().model.image_codec
    assert kept == dataclasses.replace(CODECS["image_codec"], weights="")
