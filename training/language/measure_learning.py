"""What the measures learn before they listen, and its file."""

from pathlib import Path

import numpy as np
import torch

from training.corpus.render import Renderer
from training.language.measure_band import chroma, learn_templates
from training.language.measure_hearing import Listeners
from training.language.measure_listeners import Namer, Reader, learn_names, learn_reading, log_mel
from training.language.measure_prompts import draw_lessons
from training.language.measure_takes import Copier, render
from yue_cli.vocab import Vocabulary

BAND_KINDS = ("genre", "instrument")


def learn(songs: int, sections: int, renderer: Renderer, copier: Copier, phonemes: tuple[str, ...]) -> Listeners:
    """Learn from training songs, from rendering and copy alike. phonemes: their names."""
    prompts = draw_lessons(songs, sections)
    lessons = [render(prompt, renderer, phonemes) for prompt in prompts]
    copies = [copier.copy(lesson.take) for lesson in lessons]
    takes = [lesson.take for lesson in lessons] + copies
    vocals, bands = [log_mel(take.vocal) for take in takes], [log_mel(take.band) for take in takes]
    truth = [prompt.truth for prompt in prompts] * 2
    namers = {kind: learn_names(bands, [names[kind] for names in truth]) for kind in BAND_KINDS}
    namers["singer"] = learn_names(vocals, [names["singer"] for names in truth])
    classes = [lesson.phonemes + 1 for lesson in lessons] * 2
    templates = learn_templates([(chroma(lesson.take.band), *lesson.key) for lesson in lessons])
    coarse = [copy.coarse for copy in copies if copy.coarse is not None]
    vocal_codes = probability_of_voice(np.concatenate(coarse, axis=1), Vocabulary().codebook_size)
    return Listeners(templates, namers, learn_reading(vocals, classes, len(phonemes) + 1), vocal_codes)


def probability_of_voice(coarse: np.ndarray, size: int) -> np.ndarray:
    """How often each code was the voice's, float64 [size], NaN for those not met. coarse: [2, frames]."""
    voice, band = (np.bincount(codes, minlength=size) for codes in coarse)
    with np.errstate(invalid="ignore"):
        return np.asarray(voice / (voice + band))


def save(path: Path, listeners: Listeners) -> None:
    """Write all that was learned."""
    namers = {kind: (n.names, n.mean, n.scale, n.weight) for kind, n in listeners.namers.items()}
    templates = {mode: torch.from_numpy(chroma) for mode, chroma in listeners.templates.items()}
    codes = torch.from_numpy(listeners.vocal_codes)
    content = {"namers": namers, "templates": templates, "reader": listeners.reader.state_dict(), "codes": codes}
    torch.save(content, path)


def load(path: Path) -> Listeners:
    """Read what was learned."""
    content = torch.load(path, weights_only=True)
    reader = Reader(len(content["reader"]["last.weight"]))
    reader.load_state_dict(content["reader"])
    namers = {kind: Namer(*values) for kind, values in content["namers"].items()}
    templates = {mode: chroma.numpy() for mode, chroma in content["templates"].items()}
    return Listeners(templates, namers, reader.eval(), content["codes"].numpy())
