"""Turn rows into token ids. No code here depends on prompts."""
