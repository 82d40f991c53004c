"""Show what a taught prompt stands in place of: tokens, the divergence from the teacher, and one answer of each.

python examples/compare_teacher.py PROMPT TEACHER_FILE QUESTION
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_prompt_tuning import load_prompt

BACKBONE = {"pretrained_model_name_or_path": ".cache/smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def main(prompt: str, teacher_file: str, question: str) -> None:
    text = Path(teacher_file).read_text(encoding="utf-8").strip()
    backbone = AutoModelForCausalLM.from_pretrained(**BACKBONE)
    tokenizer = AutoTokenizer.from_pretrained(**BACKBONE)
    model = load_prompt(prompt, backbone=backbone, tokenizer=tokenizer).model
    results = json.loads(Path(prompt, "eval_results.json").read_text(encoding="utf-8"))
    print(f"\ntokens of the text: {len(tokenizer(text)['input_ids'])}, vectors of the prompt: {len(model.prompt)}")
    for name, value in results.items():
        if name.endswith(("kl", "agreement")):
            print(f"{name}: {value:.3f}")
    chat = pipeline("prompt-generation", model=model, tokenizer=tokenizer, do_sample=False, max_new_tokens=48)
    user = {"role": "user", "content": question}
    with model.disable_adapter():
        print(f"\nwith neither:\n{answer(chat, [user])}")
        print(f"\nbehind the text:\n{answer(chat, [{'role': 'system', 'content': text}, user])}")
    print(f"\nbehind the prompt:\n{answer(chat, [user])}")


def answer(chat, messages: list[dict[str, str]]) -> str:
    return chat(messages)[0]["generated_text"][-1]["content"]


if __name__ == "__main__":
    main(*sys.argv[1:])
