"""One table of metrics: every score has an entry, every page follows it, and a comparison names the better run."""

import ast
from pathlib import Path

import numpy as np
import pytest
from test_leaderboard import FEW, board, scored

from mmfm.evals.metrics import Score, mean, ratio
from mmfm.evals.metrics_table import (
    GROUPS,
    METRICS,
    better,
    entry_of,
    group_of,
    is_headline,
    is_share,
    label,
    metric_of,
)
from mmfm.evals.results import row_of

ROOT = Path(__file__).parent.parent
LOWER = (
    "wer", "cer", "median_rank", "bits_per_byte", "nelbo_bits_per_byte", "bits_per_byte_with_length", "hallucinated",
    "bits_per_code_bound", "spectral_distance", "bits_per_pixel", "bits_per_second", "truncated", "frechet", "kid",
)  # fmt: skip
NEITHER = ("code_entropy_bits", "held_out", "read real", "words_written", "length_ratio")


def test_directions_are_those_of_the_definitions() -> None:
    """Errors, ranks, bits and distances are better where lower; likenesses and shares of right ones where higher."""
    assert {name for name, one in METRICS.items() if one.higher_is_better is False} == set(LOWER)
    assert {name for name, one in METRICS.items() if one.higher_is_better is None} == set(NEITHER)
    cases = {"nelbo_bits_per_byte": -0.1, "speech/wer": 0.2, "codebook_usage/3": 0.1, "read real": 0.5, "unknown": 0.5}
    assert [better(*case) for case in cases.items()] == [1, -1, 1, 0, 0] and better("wer", 0.0) == 0


@pytest.mark.parametrize("metric", ["nelbo_bits_per_byte", "speech/wer", "masked_acc@15"])
def test_a_comparison_names_the_better_run(tmp_path: Path, metric: str) -> None:
    """Two runs of which the first has the lower scores on every item."""
    bits = np.random.default_rng(0).random(200) + 1.0
    folders = []
    for name, more in (("low", 0.0), ("high", 0.5)):
        rate = ratio(bits + more, np.full(200, 4))
        folders.append(
            scored(tmp_path, name, {"test": [Score(task="text~", metric=metric, statistic=rate, n=200, chance=8.0)]})
        )
    (one,) = board(*folders).comparisons
    assert one.better == (1 if metric_of(metric).higher_is_better else 0)


def written() -> set[str]:
    """Every metric that a Score of the code is given as a plain text, and every name in the tables of scripts."""
    found = set()
    for path in sorted((ROOT / "mmfm" / "evals").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "metric" and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    for name in ("gather.py", "experiment.py"):
        for node in ast.parse((ROOT / "tools" / name).read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COLUMNS":
                found |= {metric for _, metric in ast.literal_eval(node.value)}
    return found


def test_every_name_in_the_code_has_an_entry() -> None:
    """Also those that scripts look for; an evaluation refuses to write a row without one."""
    names = written()
    assert len(names) > 6 and {name for name in names if entry_of(name) is None} == set()
    loose = Score(task="t", metric="no such score", statistic=mean(np.ones(3)), n=3, chance=0.0)
    with pytest.raises(AssertionError, match="no such score has no entry"):
        row_of("test", loose, FEW)


def test_names_labels_units_and_groups() -> None:
    """JUDGE/NAME and NAME/BOOK have the entry of their metric, whatever the case; decibels are no share; probes are no
    writing."""
    assert [entry_of(name) for name in ("digits/read", "WER", "codebook_usage/11", "r@1", "x")] == [
        "read", "wer", "codebook_usage", "R@1", None
    ]  # fmt: skip
    assert [label(name) for name in ("speech/wer", "codebook_usage/2", "mean per class", "my_own")] == [
        "speech/WER", "codes used/2", "mean per class", "my own"
    ]  # fmt: skip
    assert is_headline("codebook_usage/2") and is_headline("digits/read") and not is_headline("digits/read real")
    assert not any(map(is_share, ("cider", "psnr", "si_sdr", "median_rank", "bits_per_code_bound")))
    assert all(map(is_share, ("acc@1", "digits/read", "wer", "codebook_usage", "masked_acc@15", "truncated")))
    found = [group_of(*pair) for pair in (("acc@1", "image:knn"), ("mAP", "audio->text"), ("speech/wer", "text>audio"))]
    assert found == [GROUPS[2], GROUPS[0], GROUPS[-1]] and {one.group for one in METRICS.values()} <= set(GROUPS)
