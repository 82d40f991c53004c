"""TRL's SFTTrainer trains a prompt-tuning model that it knows nothing of, and counts what is there."""

import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningError, load_prompt, strip_virtual_tokens
from tests.shared.foreign_trainers import COMMON, as_tensors, by_hand, ours
from tests.shared.reference import reference_loss, tiny_prompt_model
from tests.shared.trainers import losses
from tests.shared.versions import WITHOUT_TRL

pytest.importorskip("trl", reason=WITHOUT_TRL)
from trl import SFTConfig, SFTTrainer

# TRL's own: it sets a name that transformers has deprecated, and says that compute_metrics will go.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning", "ignore:.*return_outputs=True:FutureWarning"
)

CHAT = (
    "{% for m in messages %}{{ m.role + ' :' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + m.content + ' ' }}{% endif %}{% endfor %}"
)


@pytest.fixture
def data(messages):
    words = {"1": " complaint", "2": " no complaint"}
    pairs = [{"prompt": f"Message : {m['message']} Label :", "completion": words[m["label"]]} for m in messages]
    return {
        "completions": Dataset.from_list(pairs),
        "text": Dataset.from_list([{"text": pair["prompt"] + pair["completion"]} for pair in pairs]),
        "chat": Dataset.from_list(
            [
                {
                    "messages": [
                        {"role": "user", "content": m["message"]},
                        {"role": "assistant", "content": words[m["label"]].strip()},
                        {"role": "user", "content": "thank you"},
                        {"role": "assistant", "content": "help"},
                    ]
                }
                for m in messages
            ]
        ),
    }


def sft(folder, tokenizer, model, data, collator=None, options=(), **values):
    values = {"bf16": False, "shuffle_dataset": False, "dataloader_pin_memory": False} | values
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(folder), **COMMON | values),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=collator,
        **dict(options),
    )


def counted(data, name="llama"):
    """The rows with the labels that TRL counts: of first tokens only where the backbone's class has no own loss."""
    return data if name == "gpt2" else data.map(lambda row: {"labels": [-100, *row["labels"][1:]]})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "completions"), ("llama", "text"), ("llama", "chat"), ("gpt2", "text"), ("bloom", "completions")],
)
def test_training_is_the_hand_written_loop_and_ours(name, kind, data, tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    trainer = sft(tmp_path, tokenizer, tiny_prompt_model(name), data[kind], assistant_only_loss=kind == "chat")
    rows = counted(trainer.train_dataset, name)
    if kind == "chat":  # both answers and nothing else
        said = [tokenizer.decode([i for i in row if i != -100]) for row in rows["labels"]]
        assert said[:2] == [" complaint</s> help</s>", " no complaint</s> help</s>"]
    trainer.train()
    expected, prompt = by_hand(tiny_prompt_model(name), rows, reference_loss)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trainer.model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)
    own = ours(tmp_path, tokenizer, tiny_prompt_model(name), rows.select_columns(["input_ids", "labels"]))
    assert losses(own) == pytest.approx(losses(trainer), rel=1e-4)
    torch.testing.assert_close(own.model.prompt, trainer.model.prompt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["completions", "text"])
def test_its_own_metrics_are_those_of_the_text(kind, data, tmp_path, tokenizer):
    """As TRL's tests have it: a virtual token is no token, and the first token of a text no target."""
    model = tiny_prompt_model("llama")
    trainer = sft(tmp_path, tokenizer, model, data[kind], max_steps=1, num_train_epochs=1, learning_rate=0.0)
    trainer.train()
    log = trainer.state.log_history[0]
    batch = as_tensors(counted(trainer.train_dataset))[:6]
    assert log["num_tokens"] == sum(len(ids) for ids, _ in batch)
    entropies, right = [], []
    for part in (batch[:3], batch[3:]):  # TRL averages the means of the accumulated batches
        with torch.no_grad():
            logits = [model(input_ids=ids[None]).logits[0, 5:-1] for ids, _ in part]
        targets = torch.cat([labels[1:] for _, labels in part])
        kept = torch.cat(logits)[targets != -100]
        entropies.append(torch.distributions.Categorical(logits=kept).entropy().mean().item())
        right.append((kept.argmax(-1) == targets[targets != -100]).float().mean().item())
    assert log["entropy"] == pytest.approx(sum(entropies) / 2, rel=1e-5)
    assert log["mean_token_accuracy"] == pytest.approx(sum(right) / 2)


def test_token_accuracy_is_that_of_what_the_model_says(data, tmp_path, tokenizer):
    """Of six labels in each row, two are what the model itself predicts there, the first token's among the others."""
    model = tiny_prompt_model("llama")
    rows = []
    for ids in (torch.tensor([5, 6, 7, 8, 9, 10, 11]), torch.tensor([12, 13, 14, 15, 16, 17, 18])):
        with torch.no_grad():
            said = model(input_ids=ids[None]).logits[0, 4:-1].argmax(-1)
        labels = torch.where(torch.isin(torch.arange(7), torch.tensor([0, 2, 5])), said, (said + 1) % 400)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    found = sft(tmp_path, tokenizer, model, Dataset.from_list(rows)).evaluate()
    assert found["eval_mean_token_accuracy"] == pytest.approx(2 / 6)
    assert found["eval_loss"] == pytest.approx(
        reference_loss(model, as_tensors(counted(Dataset.from_list(rows)))).item(), rel=1e-5
    )


def test_metrics_align_with_labels(data, tmp_path, tokenizer):
    seen = {}

    def metrics(prediction):
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {}

    options = {"compute_metrics": metrics, "preprocess_logits_for_metrics": strip_virtual_tokens}
    model = tiny_prompt_model("llama")
    trainer = sft(tmp_path, tokenizer, model, data["completions"], options=options)
    trainer.evaluate()
    assert seen["logits"].shape[:2] == seen["labels"].shape
    for (ids, _), logits in zip(as_tensors(trainer.train_dataset), seen["logits"], strict=True):
        with torch.no_grad():
            alone = model(input_ids=ids[None]).logits[0, 5:]
        torch.testing.assert_close(torch.tensor(logits[: len(ids)]), alone, rtol=1e-4, atol=1e-4)


def test_dft_weighs_each_token_by_its_probability(data, tmp_path, tokenizer):
    model = tiny_prompt_model("llama")
    trainer = sft(tmp_path, tokenizer, model, data["completions"], loss_type="dft", per_device_eval_batch_size=12)
    scores = []
    for ids, labels in as_tensors(trainer.train_dataset):
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, 5:-1]
        keep = labels[1:] != -100
        scores.append(logits.log_softmax(-1)[keep].gather(1, labels[1:][keep, None]))
    scores = torch.cat(scores)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(-(scores * scores.exp()).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"packing": True},
        {"packing": True, "packing_strategy": "bfd_split"},
        {"padding_free": True, "max_length": None},
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_packed_rows_are_refused(values, batch, data, tmp_path, tokenizer):
    """Also where a row happens to hold one example: the next one will not."""
    trainer = sft(
        tmp_path,
        tokenizer,
        tiny_prompt_model("llama"),
        data["completions"],
        per_device_train_batch_size=batch,
        **{"max_length": 40, **values},
    )
    with pytest.raises(PromptTuningError, match="several examples are packed into a row"):
        trainer.train()
    with pytest.raises(PromptTuningError, match="several examples are packed into a row"):
        trainer.evaluate()


def test_our_collator_serves_as_well(data, tmp_path, tokenizer):
    """Rows padded at the left, too."""
    found = []
    for side in ("right", "left"):
        tokenizer.padding_side = side
        collator = DataCollatorForPromptTuning(tokenizer)
        trainer = sft(tmp_path, tokenizer, tiny_prompt_model("llama"), data["completions"], collator)
        trainer.train()
        found.append(losses(trainer))
    expected, _ = by_hand(tiny_prompt_model("llama"), trainer.train_dataset, reference_loss)
    assert found[0] == pytest.approx(expected, rel=1e-4) and found[1] == pytest.approx(expected, rel=1e-4)


def test_resume_best_and_load(data, tmp_path, tokenizer):
    values = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    whole = sft(tmp_path, tokenizer, tiny_prompt_model("llama"), data["completions"], **values)
    whole.train()
    again = sft(tmp_path, tokenizer, tiny_prompt_model("llama"), data["completions"], **values)
    again.model.prompt.data.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert torch.equal(again.model.prompt, whole.model.prompt)
    best = min(log["eval_loss"] for log in whole.state.log_history if "eval_loss" in log)
    assert whole.state.best_metric == best == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-5)
    whole.save_model()
    loaded = load_prompt(str(tmp_path), backbone=whole.model.get_base_model())[0]
    assert torch.equal(loaded.prompt, whole.model.prompt)
