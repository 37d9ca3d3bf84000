"""The grammar of tasks: what each text means, and the words for what means nothing."""

import pytest

from mmfm.config import UserError
from mmfm.config.task import Task, parse, parse_chain, parse_writing


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("image>text", Task(("image",), "text")),
        ("image,audio>text", Task(("image", "audio"), "text")),
        (">text", Task((), "text")),
        ("audio", Task(("audio",), None)),
        ("text>image", Task(("text",), "image")),
        ("audio>audio", Task(("audio",), "audio")),
        ("image,text,image>text", Task(("image", "text", "image"), "text")),
        ("image~", Task((), "image", fill=True)),
        ("text>image~", Task(("text",), "image", fill=True)),
    ],
)
def test_a_task_is_read_and_written_back(text, task):
    assert parse(text) == task and str(task) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "reads nothing and writes nothing"),
        ("image>", "cannot write ''; targets are image, audio, text"),
        (">smell", "cannot write 'smell'"),
        ("~", "cannot write ''"),
        ("video>text", "no modality called 'video'; there are image, audio, text"),
        ("image,>text", "no modality called ''"),
    ],
)
def test_what_is_no_task_says_why(text, words):
    with pytest.raises(UserError, match=words):
        parse(text)


def test_a_task_that_only_reads_has_no_target_to_write():
    assert parse("image").target is None
    with pytest.raises(UserError, match="no '>' and so no target; write sources>target"):
        parse_writing("image")


def test_another_way_to_write_it_is_the_same_task():
    """What is filled in reads nothing else, with the arrow or without."""
    assert parse(">image~") == parse("image~")


def test_each_link_of_a_chain_reads_what_the_one_before_wrote():
    assert list(map(str, parse_chain("image>text>audio"))) == ["image>text", "text>audio"]
    assert list(map(str, parse_chain("text>image~"))) == ["text>image~"]
    with pytest.raises(UserError, match="has an empty link"):
        parse_chain("image>>audio")


def test_a_task_counts_the_items_that_it_names():
    task = parse("image,text,image>text")
    assert [task.mentions(name) for name in ("image", "text", "audio")] == [2, 2, 0]
