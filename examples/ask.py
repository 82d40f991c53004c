"""Ask a chat model a question, without and with a prompt that was tuned on conversations.

python examples/ask.py PROMPT QUESTION
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_prompt_tuning import load_prompt

BACKBONE = {"pretrained_model_name_or_path": ".cache/smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def main(prompt: str, question: str) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(**BACKBONE)
    tokenizer = AutoTokenizer.from_pretrained(**BACKBONE)
    model = load_prompt(prompt, backbone=backbone, tokenizer=tokenizer).model
    chat = pipeline("prompt-generation", model=model, tokenizer=tokenizer, do_sample=False)
    messages = [{"role": "user", "content": question}]
    with model.disable_adapter():
        print(f"\nwithout the prompt:\n{chat(messages)[0]['generated_text'][-1]['content']}")
    print(f"\nwith the prompt:\n{chat(messages)[0]['generated_text'][-1]['content']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
