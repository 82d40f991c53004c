"""Ranking 77 and 1,000 labels behind a prompt of 20 vectors, beside ranking two of them; run by inference.py.

The 77 labels are intents of customers (intents.tsv, with two messages each). A prompt is trained on the first message
of each for some epochs, and the second messages are ranked, behind that prompt and behind a random one. The 1,000
labels are the 77 and combinations of verbs and things.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure_speed import load

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    LabelSearch,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.layouts.candidates import Trie

P, EPOCHS = 20, 12
SIZES = ((77, 32), (1000, 8))
"""Numbers of labels, and of rows that are ranked."""
INTENTS = Path(__file__).parent / "intents.tsv"
VERBS = "ask for,book,buy,cancel,change,check,compare,confirm,correct,delete,explain,extend,find,lend,move,open,order"
VERBS = (
    f"{VERBS},pay for,pause,postpone,print,question about,renew,repair,replace,report,return,sell,share,trouble with"
)
THINGS = (
    "adapter,allowance,antenna,battery,bonus card,cable box,charger,cloud storage,contract,credit,delivery,deposit"
)
THINGS = f"{THINGS},extra number,fibre line,gift card,guarantee,headset,invoice,landline,letter,loyalty points,modem"
THINGS = f"{THINGS},music option,news letter,night rate,payment,receiver,second sim,smart watch,travel option,voucher"


class LabelBench:
    """A trained and a random prompt on one backbone, and PEFT's model with the trained one."""

    CASES = tuple(f"rank {count} labels, P={P}, B={size}" for count, size in SIZES)

    def __init__(self) -> None:
        import peft

        lines = [line.split("\t") for line in INTENTS.read_text().splitlines()]
        intents = [line[0] for line in lines]
        pairs = (f"{verb} {thing}" for verb, thing in itertools.product(VERBS.split(","), THINGS.split(",")))
        self.words = {77: intents, 1000: [*intents, *pairs][:1000]}
        backbone, self.tokenizer = load("smollm2")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        config = dict(num_virtual_tokens=P, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM")
        self.ours = get_prompt_tuning_model(backbone, PromptTuningConfig(**config))
        self.ours.add_adapter("random", PromptTuningConfig(**config))
        self.collator = DataCollatorForPromptTuning(self.tokenizer)
        self._train([{"message": line[1], "intent": line[0]} for line in lines])
        coder = self.ours.row_encoder(self.tokenizer)
        self.rows = [coder.content_ids(line[2]) for line in lines]
        self.labels = {
            count: [[*self.tokenizer(f" {word}").input_ids, self.tokenizer.eos_token_id] for word in words]
            for count, words in self.words.items()
        }
        self.peft = peft.get_peft_model(backbone, peft.PromptTuningConfig(**config)).eval()
        self.peft.prompt_encoder["default"].embedding.weight.data.copy_(self.ours.prompt.data)
        self.nodes: dict[str, float] = {}

    def _train(self, rows: list[dict]) -> None:
        words = {row["intent"]: row["intent"] for row in rows}
        template = PromptTemplate(source="Message : {message} Intent :", label_column="intent", label_words=words)
        with tempfile.TemporaryDirectory() as folder:
            args = PromptTuningArguments(
                output_dir=folder,
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=7,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            )
            trainer = PromptTuningTrainer(
                model=self.ours, args=args, train_dataset=rows, processing_class=self.tokenizer, template=template
            )
            trainer.train()
        self.ours.eval()

    def texts(self, start: int, count: int) -> list[list[int]]:
        return [self.rows[(start + i) % len(self.rows)] for i in range(count)]

    def rank(self, texts: list[list[int]], labels: list[list[int]], name: str = "", **options) -> torch.Tensor:
        """[B, L] scores by ours."""
        batch = self.collator([{"input_ids": ids, "labels": [-100] * len(ids)} for ids in texts])
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = self.ours(**given, candidates=labels, **options)
        if output.nodes is not None:
            self.nodes[name] = float(output.nodes.float().mean()) / Trie.of(labels).computed
        return output.scores

    def rank_with_peft(self, texts: list[list[int]], labels: list[list[int]]) -> torch.Tensor:
        """A pass for each label, as PEFT's users write it."""
        scores = []
        for words in labels:
            rows = [{"input_ids": ids + words, "labels": [-100] * len(ids) + words} for ids in texts]
            given = self.collator(rows)
            with torch.no_grad():
                logits = self.peft(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
            logp = logits[:, P - 1 : -1].float().log_softmax(-1)
            gold = given["labels"].clamp(min=0)[..., None]
            scores.append((logp.gather(-1, gold)[..., 0] * (given["labels"] != -100)).sum(1))
        return torch.stack(scores, dim=1)

    def cases(self, start: int) -> dict[str, dict[str, Callable[[], torch.Tensor]]]:
        """What is timed, on the messages from `start`."""
        return {
            name: self.systems(count, self.texts(start, size))
            for name, (count, size) in zip(self.CASES, SIZES, strict=True)
        }

    def systems(self, count: int, texts: list[list[int]]) -> dict[str, Callable[[], torch.Tensor]]:
        labels, best = self.labels[count], LabelSearch(top_k=1)
        systems = {
            "2 labels": lambda: self.rank(texts, labels[:2]),
            "best": lambda: self.rank(texts, labels, "best", search=best),
            "all": lambda: self.rank(texts, labels),
            "best, random": lambda: self.rank(texts, labels, "best, random", search=best, adapter_names="random"),
        }
        return systems if count > 77 else systems | {"peft": lambda: self.rank_with_peft(texts, labels)}
