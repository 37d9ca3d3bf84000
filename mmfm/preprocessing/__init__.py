"""Bytes to tensors: each file here owns one decoder, bounds what it reads and refuses what it cannot read whole."""

from mmfm.config import UserError, one_line

CODES = {
    "image_empty": "a picture of 0 bytes",
    "image_damaged": "a picture that is cut, damaged or of no known format",
    "image_too_big": "a picture of more pixels than are allowed",
    "audio_empty": "a sound of 0 bytes",
    "audio_damaged": "a sound that is damaged or of no known format",
    "audio_cut": "a sound that ends before its header says",
    "audio_format": "a sound in a container that is not read here",
    "audio_rate": "a sound of an impossible sampling rate",
    "audio_channels": "a sound of too many channels",
    "audio_length": "a sound whose length cannot be known without decoding it",
    "audio_too_long": "a sound longer than is allowed",
    "audio_no_samples": "a sound that holds no samples",
    "audio_not_finite": "a sound whose samples are not finite or absurdly loud",
    "audio_silent": "a sound that is silence from end to end",
    "text_not_utf8": "a text that is not UTF-8",
    "text_empty": "a text of white space only",
    "text_too_long": "a text longer than is allowed",
    "json_damaged": "a .json that is no JSON",
    "json_no_object": "a .json that holds no object",
    "label_no_number": "a .cls that is no whole number",
    "codes_damaged": "stored codes that are no row of whole numbers, or not as many as a whole item has",
    "codes_missing": "no stored codes where the other samples of the shards have some",
    "codes_outside": "stored codes outside the range of their codec",
    "part_too_big": "a file of more bytes than a part of a sample may have",
    "empty_sample": "a sample without picture, sound and text",
    "missing_image": "no picture where the source promises one",
    "missing_audio": "no sound where the source promises one",
    "missing_text": "no text where the source promises one",
    # New ones come last: a checkpoint counts by their places.
    "image_format": "a picture in a format that is not read here",
    "own_damaged": "a file of a modality of one's own that cannot be used",
    "missing_own": "no item of a modality of one's own where the source promises one",
    "messages_missing": "no conversation where the source promises one",
    "messages_role": "a message of a role that is not known",
    "messages_content": "a message whose content is neither text nor parts",
    "messages_parts": "a conversation that mentions other parts than its sample holds",
    "messages_mark": "a message that holds what opens a turn",
    "messages_unlearned": "a conversation of which no token is learned",
    "messages_too_long": "a conversation longer than is allowed",
    "messages_unanswered": "a conversation that asks nothing, or has no answer to hold what is written against",
    "messages_answers": "answers of a conversation that are no list of texts",
    "messages_choices": "choices of a conversation that are no list of texts",
    "messages_no_pair": "a conversation of more than a question in words, where a text is read and one written",
    "messages_program": "a program by which answers of code are run that is none",
}


class BadSample(UserError):
    """Content that cannot be used, by no fault of the machine: the bytes are wrong and always will be.

    `code`, one of CODES, is what is counted; the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, code
        super().__init__(code, message)  # both, or it could not travel between processes
        self.code, self.message = code, message

    def __str__(self) -> str:
        return one_line(self.message)
