"""The grammar of tasks: what each text means, and the words for what means nothing."""

import pytest

from mmfm.config import UserError
from mmfm.grammar import Task, parse, parse_writing


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("image>text", Task(("image",), "text")),
        ("image,audio>text", Task(("image", "audio"), "text")),
        (">text", Task((), "text")),
        ("audio", Task(("audio",), None)),
    ],
)
def test_a_task_is_read_and_written_back(text, task):
    assert parse(text) == task and str(task) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "reads nothing and writes nothing"),
        ("image>", "cannot write ''; targets are text"),
        (">audio", "cannot write 'audio'"),
        ("video>text", "no modality called 'video'; there are image, audio, text"),
        ("image,image>text", "names a source twice"),
        ("text>text", "reads the very text that it should write"),
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
