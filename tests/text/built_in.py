"""Every chat format that is built in, over the same two vocabularies."""

from __future__ import annotations

from herd.text.formats import ChatFormat
from herd.text.formats.chatml import ChatML
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import VERSIONS, Llama3
from herd.text.formats.llama4 import Llama4, MuseGlimmer
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
SPACES = vocabularies.sentencepiece()
FORMATS: tuple[ChatFormat, ...] = (
    ChatML(BYTES),
    ChatML(BYTES, default_system="Be kind.", bos="<|begin_of_text|>"),
    Llama2(SPACES),
    *(Llama3(BYTES, version) for version in VERSIONS),
    Llama4(BYTES),
    MuseGlimmer(BYTES),
    MetaLlama3(BYTES),
    MetaLlama4(BYTES),
)
