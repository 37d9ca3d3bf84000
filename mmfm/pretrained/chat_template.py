"""A source's chat template as the structure that ours is: what stands around the text of each role.

Sources bring a program (Jinja), which runs in a child process with limits, in Jinja's sandbox, as transformers runs it.
Probes show what stands where; then the ids of random conversations must be those of the source, rendered whole and
tokenised whole. A template that is more than such a structure is refused, with what it does.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tokenizers

from mmfm.config import UserError, require
from mmfm.config.chat import ROLES, ChatTemplate
from mmfm.preprocessing.chat import Message, encode_chat
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.limited import run_limited

SECONDS, MEMORY_MB, OUTPUT_BYTES = 60, 1_024, 1 << 24  # of the child
LONGEST = 1 << 18  # characters of a template; those of large models have 10,000
PROVED = 1_000  # random conversations whose ids are compared
SYSTEM, ASKED, ANSWERED, AGAIN, LAST = (f"Qz{word}zQ" for word in ("system", "ask", "answer", "again", "last"))
WORDS = (
    *("a", "of", "Hello", "world", "it's", "I'll", "naïve", "Straße", "Привет", "мир", "你好", "こんにちは", "مرحبا"),
    *("42", "3.14", "1,000", "2026-11-30", "<b>", "a|b", "{x: 1}", "{{ y }}", "{% if %}", "[INST", "x = y[0]", "$5"),
    *("...", "?!", "—", "user", "assistant", "system", "😀", "e\u0301", "_under_", "https://a.b/c?d=e", "\\n", '"q"'),
)
BETWEEN = (" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", "\n - ")

# What transformers.utils.chat_template_utils makes of a template, but for the clock: a date that moves is no structure.
RENDER = """
import json, sys
import jinja2, jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)
    def _same(self, caller):
        return caller()

def refuse(message):
    raise jinja2.exceptions.TemplateError(message)

def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

given = json.load(sys.stdin.buffer)
made = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
made.filters["tojson"] = tojson
made.globals["raise_exception"] = refuse
found = []
try:
    template = made.from_string(given["template"])
    for one in given["conversations"]:
        try:
            found.append([template.render(tools=None, documents=None, **given["tokens"], **one), ""])
        except Exception as why:
            found.append(["", f"{type(why).__name__}: {why}"])
except Exception as why:
    found = [["", f"{type(why).__name__}: {why}"] for _ in given["conversations"]]
sys.stdout.buffer.write(json.dumps(found).encode())
"""


@dataclass(frozen=True, kw_only=True)
class JinjaTemplate:
    """A source's template. tokens: what it may ask for by name, such as bos_token."""

    text: str
    tokens: Mapping[str, str] = field(default_factory=dict)


class Conversation(NamedTuple):
    """Roles and texts; reply: an answer is to be written."""

    turns: tuple[tuple[str, str], ...]
    reply: bool = False


def render(source: JinjaTemplate, conversations: Sequence[Conversation]) -> list[tuple[str, str]]:
    """Each conversation as the source writes it and, where it refuses one, nothing and what it says.

    UserError: the template runs longer than `SECONDS`, takes more than `MEMORY_MB`, or is no template at all.
    """
    require(len(source.text) <= LONGEST, f"it has {len(source.text):,} characters, more than {LONGEST:,}")
    asked = [
        {"messages": [{"role": role, "content": text} for role, text in one.turns], "add_generation_prompt": one.reply}
        for one in conversations
    ]
    given = {"template": source.text, "tokens": dict(source.tokens), "conversations": asked}
    argv = [sys.executable, "-I", "-c", RENDER]
    done = run_limited(
        argv, stdin=json.dumps(given).encode(), seconds=SECONDS, memory_mb=MEMORY_MB, output_bytes=OUTPUT_BYTES
    )
    told = f"it goes beyond a limit of {done.reason}" if done.reason else done.stderr.decode(errors="replace")[-200:]
    require(done.code == 0, f"it cannot be rendered: {told}")
    return [(str(text), " ".join(str(why).split())[:200]) for text, why in json.loads(done.stdout)]


def chat_template(source: JinjaTemplate, tokenizer: Tokenizer) -> ChatTemplate:
    """Its structure, proved. UserError: it is more than that, its answers end in no special token, or ids differ."""
    found = structure(source, tokenizer)
    prove(found, source, tokenizer)
    return found


def structure(source: JinjaTemplate, tokenizer: Tokenizer) -> ChatTemplate:
    """By probes: each text is a word that stands nowhere else, and what lies between two of them belongs to roles."""
    dialogue = (("user", ASKED), ("assistant", ANSWERED), ("user", AGAIN), ("assistant", LAST))
    probes = [
        Conversation(dialogue),
        Conversation(dialogue[:1]),
        Conversation(dialogue[:1], reply=True),
        Conversation((("system", SYSTEM), *dialogue[:1])),
    ]
    whole, question, replied, led = render(source, probes)
    head, turned, between, again, after = _pieces(whole, ASKED, ANSWERED, AGAIN, LAST)
    closing, opening = _pieces(question, ASKED)[1], _pieces(replied, ASKED)[1]
    told = "it opens an answer that is to be written otherwise than one that is there"
    require(turned == again == opening and opening.startswith(closing), told)
    require(between.startswith(after), "it ends the last answer otherwise than those before it")
    user = (between.removeprefix(after), closing)
    require(head.endswith(user[0]), "it opens the first turn of the user otherwise than those after it")
    start = head[: len(head) - len(user[0])]
    prefix, system, default = _system(led, start, user[0], source.tokens.get("bos_token", ""))
    return ChatTemplate(
        prefix=prefix,
        system=system,
        user=user,
        assistant=(opening.removeprefix(closing), after),
        end=_end(after, tokenizer),
        default_system=default,
    )


def _system(led: tuple[str, str], start: str, user: str, begin: str) -> tuple[str, tuple[str, str] | None, str | None]:
    """The prefix, what stands around a system's text, and that of a conversation that has none. led: one that has it;
    start: what one without has before `user`, which opens the user's turn."""
    text, _ = led
    before, _, after = text.partition(SYSTEM)
    if text.count(SYSTEM) != 1 or not after.partition(ASKED)[0].endswith(user):
        return start, None, None  # it has no system's turn, or puts it into the user's
    closing = after.partition(ASKED)[0].removesuffix(user) if user else after.partition(ASKED)[0]
    if before.startswith(start):
        return start, (before.removeprefix(start), closing), None
    told = "what it says where there is no system's turn is not what it says around one"
    require(start.startswith(before) and start[len(before) :].endswith(closing), told)
    default = start[len(before) : len(start) - len(closing)]
    prefix = begin if before.startswith(begin) and not user.startswith(begin) else ""
    return prefix, (before.removeprefix(prefix), closing), default


def _pieces(rendered: tuple[str, str], *marks: str) -> list[str]:
    """What lies before, between and after these words."""
    text, why = rendered
    require(not why, f"it refuses a conversation of user and assistant ({why})")
    pieces = []
    for mark in marks:
        require(text.count(mark) == 1, f"it writes what a message says {text.count(mark)} times")
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _end(after: str, tokenizer: Tokenizer) -> str:
    """The special token that ends an answer."""
    marks = [mark for mark in special_tokens(tokenizer) if after.startswith(mark)]
    told = f"it ends an answer with {after!r}, which begins with no special token of the tokenizer"
    require(bool(marks), f"{told}, so that an answer's text could not be told from its end")
    return max(marks, key=len)


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.inner.get_added_tokens_decoder().values() if token.special]


def prove(template: ChatTemplate, source: JinjaTemplate, tokenizer: Tokenizer, count: int = PROVED) -> None:
    """UserError where some of so many random conversations have other ids than by the source's own template, whose
    text is tokenised whole, special tokens recognised."""
    conversations = examples(count, template.system is not None, (*_marks(template), *special_tokens(tokenizer)))
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    whole.encode_special_tokens = False
    wrong = []
    for one, (text, why) in zip(conversations, render(source, conversations), strict=True):
        require(not why, f"it refuses a conversation ({why})")
        messages = [Message(role, (said,)) for role, said in one.turns]
        ours = encode_chat(messages, template, tokenizer, reply=one.reply).ids
        wrong += [] if ours == whole.encode(text, add_special_tokens=False).ids else [one]
    told = f"{len(wrong)} of {count:,} random conversations have other ids when each turn is tokenised alone"
    require(not wrong, f"{told}, such as {wrong[:1]!r:.200}")


def _marks(template: ChatTemplate) -> list[str]:
    """What opens a turn, which no text of an example holds."""
    openings = [template.user, template.assistant, *([] if template.system is None else [template.system])]
    return [before.strip() for before, _ in openings if before.strip()]


def examples(count: int, system: bool, without: Sequence[str]) -> list[Conversation]:
    """Random conversations of one to nine turns, of texts in several scripts that hold none of `without`; half of them
    are to be answered. system: half have a system's turn."""
    draw = random.Random(0)
    return [_example(draw, system, without) for _ in range(count)]


def _example(draw: random.Random, system: bool, without: Sequence[str]) -> Conversation:
    first = [("system", _text(draw, without))] if system and draw.random() < 0.5 else []
    turns = [(("user", "assistant")[turn % 2], _text(draw, without)) for turn in range(draw.randint(1, 8))]
    return Conversation((*first, *turns), reply=turns[-1][0] == "user")


def _text(draw: random.Random, without: Sequence[str]) -> str:
    """Without white space at its ends, as all texts of messages are read."""
    while True:
        words = [draw.choice(WORDS) + draw.choice(BETWEEN) for _ in range(draw.randint(1, 24))]
        text = "".join(words).strip()
        if not any(mark in text for mark in without):
            return text


def jinja(template: ChatTemplate, end: str = "") -> str:
    """The structure as a template of transformers, whose texts are trimmed where ours are.

    end: what stands for `template.end` where that is empty.
    """
    (opening, after), roles = template.assistant, dict[str, tuple[str, str]]()
    roles = {name: getattr(template, name) for name in ROLES if getattr(template, name) is not None}
    roles["assistant"] = (opening, after if template.end else end + after)
    lines = [f"{{{{- {_literal(template.prefix)} }}}}"] * bool(template.prefix)
    if template.system is not None and template.default_system is not None:
        text = template.default_system
        said = (text.strip() if template.strip else text).join(template.system)
        lines.append(f"{{%- if messages[0]['role'] != 'system' %}}{{{{- {_literal(said)} }}}}{{%- endif %}}")
    lines.append("{%- for message in messages %}")
    trim = " | trim" if template.strip else ""
    for number, (role, (before, behind)) in enumerate(roles.items()):
        lines.append(f"{{%- {'elif' if number else 'if'} message['role'] == '{role}' %}}")
        lines.append(f"{{{{- {_literal(before)} + message['content']{trim} + {_literal(behind)} }}}}")
    lines.append("{%- else %}{{- raise_exception('there is no role ' + message['role']) }}{%- endif %}{%- endfor %}")
    lines.append(f"{{%- if add_generation_prompt %}}{{{{- {_literal(opening)} }}}}{{%- endif %}}")
    return "\n".join(lines)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def tokens_of_hf(tokenizer: Any) -> dict[str, str]:
    """What transformers gives to a template by name."""
    return {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def of_hf(tokenizer: Any) -> JinjaTemplate | None:
    """That of a tokenizer of transformers; of several by name, the one called "default". None: it has none."""
    found = tokenizer.chat_template
    text = found.get("default") if isinstance(found, Mapping) else found
    return JinjaTemplate(text=str(text), tokens=tokens_of_hf(tokenizer)) if text else None


__all__ = ["JinjaTemplate", "UserError", "chat_template", "jinja", "of_hf", "prove", "render", "structure"]
