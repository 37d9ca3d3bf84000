"""Lines and bodies of functions that a model never saw, filled in: exact lines, bits per byte, and pass@1.

    mmfm eval RUN configs/suites/code.py --root data/code

By kind: "psm" and "spm" have both sides of the gap in the two orders, "prefix" the same gap without what follows it.
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    lines = ",".join(f"test/{kind}-*.tar" for kind in ("psm", "spm", "prefix"))
    return Suite(
        name="code",
        tasks=(
            Answer(name="line", shards=lines, metrics=("line", "edit", "pass")),
            Answer(name="body", shards="test/body-*.tar", metrics=("edit", "pass"), baselines=()),
            Answer(name="next", shards="test/next-*.tar", metrics=(), baselines=(), write=False),
        ),
        layout="ROOT/test, shards of conversations, as `mmfm data code ROOT` writes them",
        source="Python's standard library",
    )
