"""Rows with a picture or none, and a template of their labels."""

from hf_prompt_tuning import PromptTemplate

from .tiny_processors import picture

SOURCE = "Seen : {image} {question} Answer :"
LABELS = PromptTemplate(source=SOURCE, label_column="label", label_words={"yes": "yes", "no": "never"})
ROWS = [
    {"image": picture(20, 30), "question": "a small dog ?", "label": "yes"},
    {"image": None, "question": "the old town", "label": "no"},
    {"image": picture(16, 40, 1), "question": "day and night", "label": "no"},
]
