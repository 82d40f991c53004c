"""Texts of many kinds, on which an export measures that its added tokens are never written."""

from collections.abc import Iterable

from ..errors import PromptTuningError

SAMPLE_TEXTS = (
    "The parcel that I ordered two weeks ago has still not arrived, and nobody answers the phone.",
    "Thank you for the quick help yesterday! Everything works again.",
    "In 1969, two people walked on the Moon for the first time; a third stayed in orbit above them.",
    "Q: What is the capital of Australia?\nA: Canberra",
    "def mean(numbers):\n    if not numbers:\n        return None\n    return sum(numbers) / len(numbers)\n",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "active": false}',
    "<html><body><h1>Opening hours</h1><p>Monday to Friday, 9:00-17:30</p></body></html>",
    "Le chat est assis sur le tapis et regarde la pluie tomber derrière la fenêtre.",
    "Der Zug nach München fährt heute leider erst um 14:35 Uhr von Gleis 7 ab.",
    "¿Dónde está la biblioteca? Está al lado del mercado, a cinco minutos de aquí.",
    "Поезд отправляется завтра в восемь часов утра.",
    "東京は日本の首都で、世界でも最大級の都市です。",
    "今天天气很好，我们去公园散步吧。",
    "القطة تنام فوق السطح في الظهيرة.",
    "Once upon a time, in a land far away, there lived a king who had three daughters. The youngest of them",
    "3.14159 2.71828 1.41421 1.61803; 12 * 12 = 144, 7 + 8 = 15, 100 / 4 = 25",
    "Review: a great film with an awful ending. Sentiment: negative\nReview: I loved every minute. Sentiment:",
    "Dear Sir or Madam,\n\nI am writing to you about my bill of the 3rd of May.\n\nYours faithfully,\n",
    "SELECT city, COUNT(*) FROM orders WHERE year >= 2020 GROUP BY city ORDER BY 2 DESC;",
    "- flour, 500 g\n- two eggs\n- a pinch of salt\n\nMix everything and bake it for 40 minutes at 180 °C.",
    "the the the the the the the the",
    "!!! ??? ... --- *** ### $$$ %%% @@@",
    "LOL that's sooo funny 😂😂 cant wait 2 see u tmrw #weekend @friend",
    "Let x be a real number such that x^2 - 5x + 6 = 0. Then (x - 2)(x - 3) = 0, so x is 2 or 3.",
    "TITLE: Meeting of 12 March\nPRESENT: A. Jones, B. Smith\n1. The minutes were read and agreed.",
    "She said: “I don’t know — maybe tomorrow.” He nodded, took his coat and left without another word.",
    "http://example.com/path?query=soft+prompts&page=2#top",
    "a",
)
"""Their even ones fit the output rows of the added tokens, and all of them check these rows."""


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Return a caller's texts. Raise PromptTuningError for a single text, and for an item without anything to read."""
    if isinstance(texts, str):
        raise PromptTuningError(f"texts is the text {texts!r:.80}; give a list of texts.")
    listed = list(texts)
    for text in listed:
        if not isinstance(text, str) or not text.strip():
            raise PromptTuningError(f"texts has {text!r:.80}; give texts that are not empty.")
    return listed
