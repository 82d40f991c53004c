"""Turn rows into token ids. Nothing here knows of prompts."""
