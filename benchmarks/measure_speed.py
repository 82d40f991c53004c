"""One measurement of speed.py, in a process of its own: python benchmarks/measure_speed.py '[SYSTEM, CASE, STEPS]'."""

import gc
import json
import sys
import time
from pathlib import Path
from statistics import median

TWEETS = "raft_twitter_complaints_train.jsonl"


def measure(system: str, case: dict, steps: int) -> dict:
    """In a process of its own: the median step of one system on one case."""
    import torch
    import transformers

    transformers.set_seed(0)
    backbone, tokenizer = load(case["model"])
    rows = encode(tokenizer, backbone, case)
    model = with_prompt(system, backbone, tokenizer, case["P"])
    measured = ranking_times if case.get("rank") else step_times
    times, before = measured(system, model, rows, tokenizer, case, steps)
    result = {"seconds": median(times), "peak_mb": (memory("VmHWM") - before) / 1024}
    if system == "packed" and case["model"] == "smollm2" and not case.get("rank"):
        result |= limit(backbone, rows, case)
    return result | {"threads": torch.get_num_threads()}


def load(name: str):
    """The real small backbone, or one of the shape that is wanted with random weights."""
    import transformers as t

    from hf_prompt_tuning.cli.arguments import ModelArguments
    from hf_prompt_tuning.cli.main import load_backbone
    from hf_prompt_tuning.models.backbone import forget_gguf

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    backbone, tokenizer = load_backbone(ModelArguments(".cache/smollm2", gguf_file=gguf))
    forget_gguf(backbone)
    if name == "bloom":
        config = t.BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
        backbone = t.AutoModelForCausalLM.from_config(config)
    elif name == "t5":
        config = t.T5Config(vocab_size=len(tokenizer), d_model=256, d_kv=32, d_ff=1024, num_layers=6, num_heads=8)
        config.decoder_start_token_id = config.pad_token_id = 0
        backbone = t.AutoModelForSeq2SeqLM.from_config(config)
    return backbone, tokenizer


def encode(tokenizer, backbone, case: dict) -> list[dict]:
    """The texts as token ids, in file order; with T, as many texts a row as make T tokens."""
    from hf_prompt_tuning import PromptTemplate
    from hf_prompt_tuning.data.files import read_file
    from hf_prompt_tuning.data.tokenization import PromptTokenizer

    data = read_file(case["data"])
    text, label, words = "message", "label", {"complaint": "complaint", "no complaint": "no complaint"}
    if Path(case["data"]).name == TWEETS:
        text, label, words = "Tweet text", "Label", {"1": "complaint", "2": "no complaint"}
    rows = [dict(row) for row in data]
    if "T" in case:
        texts = " ".join(data[text]).split()
        rows = [row | {text: " ".join([*texts[i * 7 :], *texts])} for i, row in enumerate(rows)]
    template = PromptTemplate(
        source=f"{text} : {{{text}}} Label :",
        label_column=label,
        label_words=words,
        max_source_length=case.get("T", 64),
    )
    coder = PromptTokenizer(template, tokenizer, backbone.config.is_encoder_decoder)
    return [{k: v for k, v in coder.encode(row).items() if k in ("input_ids", "labels", "label")} for row in rows]


def with_prompt(system: str, backbone, tokenizer, P: int):
    """The backbone behind a random prompt, PEFT's or ours."""
    import peft

    from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model

    if system == "peft":
        task = "SEQ_2_SEQ_LM" if backbone.config.is_encoder_decoder else "CAUSAL_LM"
        config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P, prompt_tuning_init="RANDOM")
        return peft.get_peft_model(backbone, config)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=P, prompt_tuning_init="RANDOM"))
    return model


def step_times(system: str, model, rows: list[dict], tokenizer, case: dict, steps: int) -> tuple[list[float], int]:
    """Seconds of each optimizer step, the first two left out, and the memory in kB before the first."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningArguments, PromptTuningTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter() - self.start)

    collator = DataCollatorForPromptTuning(tokenizer, pad_to_multiple_of=case.get("pad_to"))
    rows = [{k: row[k] for k in ("input_ids", "labels")} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        values = dict(
            output_dir=folder,
            per_device_train_batch_size=case["B"],
            max_steps=steps + 2,
            learning_rate=1e-3,
            save_strategy="no",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            logging_strategy="no",
        )
        if system == "peft":
            arguments, cls = TrainingArguments(**values), Trainer
        else:
            layout = system if case["model"] != "t5" else "auto"
            arguments, cls = PromptTuningArguments(**values, layout=layout, check_layout=False), PromptTuningTrainer
        trainer = cls(model, arguments, data_collator=collator, train_dataset=rows, processing_class=tokenizer)
        trainer.add_callback(Clock())
        before = count_peak_from_here(model)
        trainer.train()
    return times[2:], before


def ranking_times(system: str, model, rows: list[dict], tokenizer, case: dict, steps: int) -> tuple[list[float], int]:
    """Seconds to score both labels of B texts; for PEFT a pass for each label, as its users write it. Then memory."""
    import torch

    from hf_prompt_tuning import DataCollatorForPromptTuning
    from hf_prompt_tuning.models.scoring import rank_labels

    labels = list({tuple(i for i in row["labels"] if i != -100): None for row in rows})
    collator, times = DataCollatorForPromptTuning(tokenizer), []
    model.eval()
    if system != "peft":
        model.use_layout(system, check=False)
    before = count_peak_from_here(model)
    for step in range(steps + 1):
        group = [rows[(step * case["B"] + i) % len(rows)] for i in range(case["B"])]
        start = time.perf_counter()
        if system == "peft":
            for words in labels:
                batch = collator([_with_target(row, words) for row in group])
                with torch.no_grad():
                    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                logp = logits[:, case["P"] - 1 : -1].float().log_softmax(-1)
                gold = batch["labels"].clamp(min=0)[..., None]
                (logp.gather(-1, gold)[..., 0] * (batch["labels"] != -100)).sum(1)
        else:
            rank_labels(model, collator(group), labels, False)
        times.append(time.perf_counter() - start)
    return times[1:], before


def _with_target(row: dict, words: tuple[int, ...]) -> dict:
    source = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    return {"input_ids": source + list(words), "labels": [-100] * len(source) + list(words)}


def limit(backbone, rows: list[dict], case: dict) -> dict:
    """Seconds of the layers' matrix products for the tokens of the first batch that cannot be left out."""
    import torch

    group = [row["input_ids"] for row in rows[: case["B"]]]
    shared = 0
    while case["B"] > 1 and len({row[shared] for row in group}) == 1:
        shared += 1
    tokens = case["P"] + shared + sum(len(row) - 1 - shared for row in group)
    weights = [p for n, p in backbone.named_parameters() if p.dim() == 2 and "embed" not in n and "head" not in n]
    inputs = {w.shape: (torch.randn(tokens, w.shape[1]), torch.randn(tokens, w.shape[0])) for w in weights}
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for w in weights:
            x, gradient = inputs[w.shape]
            x @ w.detach().T
            gradient @ w.detach()
        times.append(time.perf_counter() - start)
    real = sum(map(len, group))
    return {
        "limit": median(times[1:]),
        "tokens": tokens,
        "real_tokens": real,
        "padded_tokens": case["B"] * (case["P"] + max(map(len, group))),
    }


def count_peak_from_here(model) -> int:
    """Forgets the peak so far, that of loading and importing; this process's memory in kB with every weight in it."""
    for parameter in model.parameters():
        parameter.double().sum()  # touches every page
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(what: str) -> int:
    """This process's memory in kB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    raise RuntimeError(f"no {what} in /proc/self/status")


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
