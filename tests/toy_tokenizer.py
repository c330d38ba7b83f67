"""Make `yue_cli/data/toy`: a small SentencePiece model, learned from the lines below, and its vocabulary.

Run from the root of the repository with `python -m tests.toy_tokenizer` when the recipe changes; both files are
committed. The model has the properties of YuE's tokenizer (byte fallback, no normalising, blanks kept), so that text
takes the same way through the code.
"""

import io
from pathlib import Path

import sentencepiece

from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import CODEBOOKS, Vocabulary

FOLDER = Path(__file__).parent.parent / "yue_cli" / "data" / "toy"
PIECES = 512
SPECIALS = "<EOD> <SOA> <EOA> <stage_1> <stage_2> <xcodec>".split()
CODEBOOK_START = 576  # leaves room for more specials; a multiple of 64, as is all that follows

TEXTS = """
Generate music from the given lyrics segment by segment.
[Genre] folk pop acoustic guitar piano calm hopeful female airy vocal clear vocal
[Genre] rock electric guitar drums bass energetic male bright vocal powerful vocal
[Genre] ballad piano strings sad romantic female soft vocal
[Genre] electronic dance synthesizer uplifting happy male vocal
[verse] [chorus] [bridge] [intro] [outro] [verse] [chorus]
[start_of_segment] [end_of_segment] [start_of_reference] [end_of_reference]
The harbour lights are fading low
I hear the tide begin to go
Your lantern on the sand
Carry me home, carry me slow
The morning takes my hand
Over the hill the rain comes in and every window starts to shine
We were walking in the summer and the river was the road
Nobody told me where the night would end, so I kept singing
You said the sky was only paper and the stars were only ink
Hold on to me, hold on to the light, there is a song behind the wind
When all the trains have gone and all the rooms are dark
I will remember you the way the sea remembers stones
Turn around, turn around, there is a fire in the snow
Give me one more day with you, one more morning in the sun
My heart is a house with an open door and a chair beside the stove
She left a letter on the table, he never read a word of it
Dancing in the kitchen with our shoes off, dancing till the day
Don't let go, don't let go, we're almost at the top
Little bird, little bird, what did you see from up there?
Nothing but water, nothing but green, and a boat with a yellow sail
Time is a teacher, love is the lesson, and I am always late
La la la, oh oh oh, hey hey, na na na, yeah
""".strip().splitlines()


def train() -> bytes:
    """Learn the pieces: the same texts give the same bytes with the same sentencepiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def vocabulary() -> Vocabulary:
    """Lay out the toy's ids: text pieces, specials, then the codebooks of one finished track."""
    specials = {"<s>": 1, "</s>": 2, **{name: number for number, name in enumerate(SPECIALS, start=PIECES)}}
    return Vocabulary(specials, specials["<xcodec>"], CODEBOOK_START, codebooks=CODEBOOKS)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / TOKENIZER_FILE).write_bytes(train())
    vocabulary().write(FOLDER)
