"""Metrics of suites against independent implementations: scikit-learn, torchmetrics, jiwer, open_clip."""

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from planted import Planted
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from mmfm.config import UserError
from mmfm.evals import metrics
from mmfm.evals.metrics import Score
from mmfm.evals.multilabel import mean_average_precision
from mmfm.evals.probes import kept_apart, nearest_neighbours, probe_ranks, regression
from mmfm.evals.resampling import Bootstrap
from mmfm.evals.retrieval import EmbeddingSet, retrieve
from mmfm.evals.split import at_rest
from mmfm.evals.suite import Transcribe, Transcripts
from mmfm.evals.templates import imagenet_names, openai_imagenet, simple_imagenet
from mmfm.evals.text_normalizers import normalizer
from mmfm.evals.writing import transcription_scores
from mmfm.evals.zero_shot import class_scores, class_vectors


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def of_labels(scores: np.ndarray, truth: np.ndarray) -> Score:
    statistic = mean_average_precision(scores, truth)
    return Score(task="audio->text", metric="mAP", statistic=statistic, n=len(truth), chance=0.0)


@pytest.mark.parametrize("ties", [False, True])
def test_map_is_that_of_scikit_learn(ties: bool) -> None:
    """Also among equal scores, where an order by place would give another number, and of a resample, whose items may
    occur twice; classes that nothing has are left out."""
    draws = generator(0)
    scores, truth = draws.normal(size=(80, 6)), draws.random((80, 6)) < 0.2
    scores, truth[:, 4] = (scores.round(), False) if ties else (scores, False)
    figure = of_labels(scores, truth)
    there = truth.any(0)
    assert figure.value == pytest.approx(average_precision_score(truth[:, there], scores[:, there], average="macro"))
    index = draws.integers(0, 80, (3, 80))
    for own, value in zip(index, figure.statistic(index), strict=True):
        again = average_precision_score(truth[own][:, there], scores[own][:, there], average="macro")
        assert value == pytest.approx(again)


def test_map_of_equal_scores_is_chance() -> None:
    """A collapsed model gets the share of items that have a class, wherever these stand."""
    truth = generator(1).random((50, 4)) < 0.3
    figure = of_labels(np.full((50, 4), 0.5), truth)
    assert figure.value == pytest.approx(truth[:, truth.any(0)].mean())
    low, high = figure.interval(Bootstrap(resamples=200))
    assert low < figure.value < high


def test_a_resample_without_any_class_has_no_map() -> None:
    """One clip of many has a label: resamples without it are left out of the interval, and not taken for 0."""
    scores, truth = generator(2).normal(size=(30, 2)), np.zeros((30, 2), bool)
    truth[3, 1], scores[3, 1] = True, 9.0
    figure = of_labels(scores, truth)
    assert figure.interval(Bootstrap(resamples=50)) == (1.0, 1.0)
    assert np.isnan(figure.statistic(np.zeros((1, 30), int)))


def sides(seed: int) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Twenty pictures with one to five captions each, at random."""
    draws = torch.Generator().manual_seed(seed)
    rows = np.repeat(np.arange(20), generator(seed).integers(1, 6, 20))
    places = {"image": np.arange(20), "text": rows}
    made = [
        EmbeddingSet(
            modality=name,
            x=F.normalize(torch.randn(len(groups), 8, generator=draws), dim=-1),
            groups=groups[:, None],
            rows=np.arange(len(groups)),
            asks=np.ones(len(groups), bool),
        )
        for name, groups in places.items()
    ]
    return made[0], made[1]


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("turned", [False, True])
def test_recall_is_the_hit_rate(k: int, turned: bool) -> None:
    """With several captions of an item R@k is torchmetrics' RetrievalHitRate, in both directions."""
    query, gallery = sides(k)[:: -1 if turned else 1]
    found = retrieve(query, gallery)
    ours = next(figure.value for figure in found.scores() if figure.metric == f"R@{k}")
    scores, relevant = query.x @ gallery.x.T, torch.from_numpy(query.groups == gallery.groups[:, 0])
    rate = RetrievalHitRate(top_k=k)
    rows = torch.arange(len(query)).repeat_interleave(len(gallery))
    rate.update(scores.flatten(), relevant.flatten(), indexes=rows)
    assert ours == pytest.approx(float(rate.compute()))


def clusters(seed: int, count: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors about a centre of each class, near enough to be mistaken."""
    draws, centres = generator(seed), generator(99).normal(size=(classes, 12))
    y = draws.integers(0, classes, count)
    x = centres[y] + 1.8 * draws.normal(size=(count, 12))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), y


@pytest.mark.parametrize("k", [1, 7, 20])
def test_neighbours_are_those_of_scikit_learn(k: int) -> None:
    """The same votes by exp(cosine / temperature), item by item."""
    (x, y), (asked, _) = clusters(0, 150), clusters(1, 80)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    theirs.fit(x.astype(float), y)
    ours = nearest_neighbours(x, y, asked, 5, k=k, temperature=0.07).scores
    shares = ours / ours.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(asked.astype(float)), atol=1e-5)


def test_a_probe_is_scikit_learns() -> None:
    """Its decisions are those of standardised logistic regression on all of train, with the C that was best apart."""
    (x, y), (asked, truth) = clusters(2, 200), clusters(3, 120)
    found = regression(x, y, asked, 5, costs=(1e-4, 1e-2, 1.0, 100.0), held_out=0.25)
    scale = StandardScaler().fit(x)
    theirs = LogisticRegression(C=found.chosen["C"], max_iter=2_000).fit(scale.transform(x), y)
    np.testing.assert_allclose(found.scores, theirs.predict_log_proba(scale.transform(asked)), atol=1e-3)
    figure = class_scores(probe_ranks(found.scores, truth), truth, 5, task="image:linear")[0]
    assert figure.value == pytest.approx(theirs.score(scale.transform(asked), truth))
    assert figure.value > figure.chance == 0.2


def test_c_is_chosen_on_train_alone() -> None:
    """C is the best of the sweep on a fifth of each class that is fitted on the rest, whatever is asked."""
    x, y = clusters(4, 150)
    apart = kept_apart(y, 0.2)
    assert [int(apart[y == name].sum()) for name in range(5)] == [round(0.2 * (y == name).sum()) for name in range(5)]
    costs, (asked, _) = (1e-6, 1e-1, 10.0), clusters(5, 20)
    found = regression(x, y, asked, 5, costs=costs, held_out=0.2)
    scale = StandardScaler().fit(x[~apart])
    scores = [
        LogisticRegression(C=cost, max_iter=2_000)
        .fit(scale.transform(x[~apart]), y[~apart])
        .score(scale.transform(x[apart]), y[apart])
        for cost in costs
    ]
    assert found.chosen["C"] == costs[int(np.argmax(scores))]
    assert regression(x, y, -asked, 5, costs=costs, held_out=0.2).chosen == found.chosen


def test_classes_that_were_not_learnt_are_never_chosen() -> None:
    """A class without training items loses against all others, in both probes; too few items are told."""
    x, y = clusters(6, 60, classes=3)
    linear = regression(x, y, x, 5, costs=(1.0,), held_out=0.2).scores
    near = nearest_neighbours(x, y, x, 5, k=5, temperature=0.07).scores
    assert set(linear.argmax(1)) | set(near.argmax(1)) <= {0, 1, 2}
    assert (linear[:, 3:] < linear[:, :3].min(1, keepdims=True)).all()
    with pytest.raises(UserError, match=r"KNN.k=61 is more than the 60 items to learn from; set it lower"):
        nearest_neighbours(x, y, x, 5, k=61, temperature=0.07)
    with pytest.raises(UserError, match="LinearProbe has one item of each class, and none to choose C by"):
        regression(x[:2], np.array([0, 1]), x, 5, costs=(1.0,), held_out=0.2)


class Spoken(torch.nn.Module):
    """open_clip's protocol over planted texts: "tokens" are places in the list of texts."""

    def __init__(self, model: Planted) -> None:
        super().__init__()
        self.model, self.seen = model, list(model.texts)

    def tokens(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.seen.index(text) for text in texts])

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return self.model.encode_text([self.seen[token] for token in tokens.tolist()], normalize)


def test_the_head_is_open_clips() -> None:
    """Unit prompts, their mean over 80 templates, scaled to length one: `build_zero_shot_classifier` to 1e-6."""
    names, templates = imagenet_names()[:7], openai_imagenet()
    draws = torch.Generator().manual_seed(0)
    prompts = [template.replace("{}", name) for name in names for template in templates]
    texts = {prompt: (3 * torch.randn(8, generator=draws)).tolist() for prompt in prompts}
    model = Planted({}, texts)
    spoken = Spoken(model)
    with at_rest(model):
        ours = class_vectors(model, names, templates)
        theirs: Any = open_clip.build_zero_shot_classifier(
            spoken, spoken.tokens, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=3, device="cpu"
        )
    torch.testing.assert_close(ours.T, theirs, atol=1e-6, rtol=0.0)


def test_templates_are_sentences_with_a_place() -> None:
    """80 and 7 sentences that say what open_clip's functions say of a name, and 1,000 names of which two are twice."""
    both = {
        openai_imagenet(): open_clip.OPENAI_IMAGENET_TEMPLATES,
        simple_imagenet(): open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    assert [len(ours) for ours in both] == [80, 7]
    for ours, theirs in both.items():
        assert [text.replace("{}", "tench") for text in ours] == [template("tench") for template in theirs]
    assert len(imagenet_names()) == 1_000 and len(set(imagenet_names())) == 998


REFERENCES = ["It's a DOG, isn't it?", "two  owls", "Stra\u00dfe 12", "--", "well-known", "Dr. Smith\u2019s colour"]
HEARD = ["its a dog isn't", "", "strasse 12!", "what was that", "well known", "doctor smith's color"]


def pairs_of(rule: str, spellings: Path | None = None) -> tuple[dict[str, Score], list[str], list[str]]:
    normalize = normalizer(rule, spellings)
    names = tuple(f"k{n}" for n in range(len(HEARD)))
    figures = transcription_scores("audio>text", REFERENCES, HEARD, normalize, rule, names)
    said, heard = ([normalize(text) for text in texts] for texts in (REFERENCES, HEARD))
    return {figure.metric: figure for figure in figures}, said, heard


@pytest.mark.parametrize("rule", ["verbatim", "plain", "letters", "whisper_basic", "whisper_english"])
def test_transcription_rates_are_those_of_jiwer(rule: str) -> None:
    """WER and CER over all texts, also those whose reference has no word after normalisation: what is heard there is
    inserted; the rule is named in every figure."""
    figures, said, heard = pairs_of(rule)
    assert figures["wer"].value == pytest.approx(jiwer.wer(said, heard))
    assert figures["cer"].value == pytest.approx(jiwer.cer(said, heard))
    assert {(figure.n, figure.normalizer) for name, figure in figures.items() if name != "hallucinated"} == {(6, rule)}
    silent = [text for text in said if not text]
    assert ("hallucinated" in figures) == bool(silent)
    if silent:
        assert (figures["hallucinated"].value, figures["hallucinated"].items) == (1.0, ("k3",))


def test_whispers_rules_are_whispers() -> None:
    """Both of transformers, and jiwer's own splitting of what stands there for verbatim."""
    texts = [*REFERENCES, *HEARD, "[laughs] twenty one (sighs) caf\u00e9s"]
    basic, english = BasicTextNormalizer(), EnglishTextNormalizer({})
    assert [normalizer("whisper_basic")(text).split() for text in texts] == [basic(text).split() for text in texts]
    assert [normalizer("whisper_english")(text).split() for text in texts] == [english(text).split() for text in texts]
    assert jiwer.wer(texts, [normalizer("verbatim")(text) for text in texts]) == 0


def test_a_table_of_spellings(tmp_path: Path) -> None:
    """British and American spellings are one word by Whisper's table, and two without it; what is no table is told."""
    (tmp_path / "normalizer.json").write_text('{"colour": "color"}')
    edits = [pairs_of("whisper_english", path)[0]["wer"].value for path in (tmp_path / "normalizer.json", None)]
    assert edits[0] < edits[1]
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad.json is no table of words; give the normalizer.json of a Whisper"):
        normalizer("whisper_english", tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"absent.json cannot be read .*; give the normalizer.json"):
        normalizer("whisper_english", tmp_path / "absent.json")
    with pytest.raises(UserError, match="is a table for spelling='whisper_english'; leave it out"):
        Transcribe(data=Transcripts(), spellings="normalizer.json")


def test_silence_alone_has_no_word_error_rate() -> None:
    """Its rates have no value and say why; what was heard in it is counted."""
    wer, cer, heard = transcription_scores("audio>text", ["", "?"], ["", "boo"], metrics.letters, "letters")
    assert np.isnan([wer.value, cer.value, *wer.interval(Bootstrap(resamples=5))]).all()
    assert wer.unknown == "no reference has a word" and (heard.metric, heard.value) == ("hallucinated", 0.5)
