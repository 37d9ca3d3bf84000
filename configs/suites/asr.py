"""Speech to text on LibriSpeech's test-clean and test-other: WER and CER, whatever the case and the punctuation.

mmfm eval RUN configs/suites/asr.py --root data/LibriSpeech
"""

from mmfm.evals.suite import Suite, Transcribe, Transcripts


def suite() -> Suite:
    parts = ("test-clean", "test-other")
    return Suite(
        name="asr",
        tasks=tuple(Transcribe(data=Transcripts(path=part), name=part) for part in parts),
        layout="ROOT/test-clean and ROOT/test-other, each with SPEAKER/CHAPTER/*.flac and *.trans.txt",
        source="LibriSpeech (Panayotov et al. 2015)",
    )
