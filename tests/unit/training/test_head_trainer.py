"""PromptTuningTrainer with classification heads: runs, metrics, checkpoints, saved prompts, and what is refused."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from transformers import set_seed

from hf_prompt_tuning import (
    ChatTemplate,
    ClassTemplate,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    TagTemplate,
    Teacher,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.models.head_scoring import head_metrics
from hf_prompt_tuning.models.model_classes import check_writes_text
from tests.shared.classifiers import tiny_classifier, tokenizer_with_cls
from tests.shared.head_runs import (
    NUMBERS,
    TEXT,
    TEXTS,
    WORDS,
    backbone_of,
    head_of,
    head_trainer,
    require_same,
    rows_of,
    trained_weights,
)
from tests.shared.tiny_models import tiny_model

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SAVED = dict(
    num_train_epochs=3,
    per_device_train_batch_size=2,
    save_strategy="steps",
    save_steps=1,
    eval_strategy="steps",
    eval_steps=1,
    load_best_model_at_end=True,
)


def refused(message):
    return pytest.raises(PromptTuningError, match=message)


@pytest.mark.parametrize("kind", ["single", "numbers", "several", "tags"])
def test_a_run_learns_and_its_prompt_reloads_with_template_and_classes(kind, tmp_path):
    rows, backbone = rows_of(kind), backbone_of(kind)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    config = backbone.config.to_dict() | {"use_cache": False}  # Trainer sets it
    trainer = head_trainer(
        tmp_path, kind, backbone=backbone, eval_rows=rows, num_train_epochs=20, head_learning_rate=3e-2
    )
    assert trainer.evaluate_untuned()["untuned_loss"] > 0
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.95 * before and "eval_perplexity" not in metrics
    assert trainer.model.info.metrics["eval_loss"] == metrics["eval_loss"]
    trainer.save_model()
    require_same(dict(backbone.state_dict()), state)
    assert backbone.config.to_dict() == config
    loaded = load_prompt(tmp_path, backbone=backbone_of(kind), tokenizer=tokenizer_with_cls())
    assert loaded.template == trainer.rows.tokenizer.template and type(loaded.template) in (ClassTemplate, TagTemplate)
    require_same(head_of(loaded.model), head_of(trainer.model))
    described = json.loads((tmp_path / "prompt_tuning.json").read_text())
    classes = {"single": ["complaint", "other", "praise"], "several": ["a", "b", "c"], "numbers": ["LABEL_0"]}
    names = classes.get(kind, ["B-X", "B-Y", "I-Y", "O"])
    assert list(described["classifier"]["id2label"].values()) == names
    kinds = {"numbers": REGRESSION, "several": MULTI}
    assert described["classifier"]["problem_type"] == kinds.get(kind, SINGLE)
    assert described["example"]["source"] == TEXTS[0]
    target = {"single": "complaint", "numbers": "0.5", "several": "['a']", "tags": "O B-X O O"}
    assert described["example"]["target"] == target[kind]
    # The prompt brings its template: rows are encoded alike, whatever rows there are.
    coder = loaded.model.row_encoder(tokenizer_with_cls())
    content = TEXTS[1].split() if kind == "tags" else {"message": TEXTS[1]}
    assert coder.content_ids(content) == trainer.train_dataset[1]["input_ids"]
    again = PromptTuningTrainer(
        loaded.model, trainer.args, eval_dataset=rows[:1], processing_class=tokenizer_with_cls()
    ).evaluate()
    assert again["eval_loss"] == pytest.approx(trainer.evaluate(rows[:1])["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["single", "tags"])
def test_a_run_resumes_bit_for_bit_with_its_head(kind, tmp_path):
    """Also its best checkpoint, and the head's own learning rate."""
    options = SAVED | dict(class_weights="balanced", head_learning_rate=2e-2)
    rows = rows_of(kind)
    whole = head_trainer(tmp_path / "a", kind, eval_rows=rows, **options)
    whole.train()
    again = head_trainer(tmp_path / "b", kind, eval_rows=rows, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert again.state.best_global_step == whole.state.best_global_step
    require_same(trained_weights(again.model), trained_weights(whole.model))
    (best,) = [
        log for log in whole.state.log_history if log["step"] == whole.state.best_global_step and "eval_loss" in log
    ]
    assert whole.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)
    checkpoint = load_prompt(tmp_path / "a" / f"checkpoint-{whole.state.best_global_step}", backbone=backbone_of(kind))
    require_same(head_of(checkpoint.model), head_of(whole.model))


def test_the_head_has_a_learning_rate_of_its_own(tmp_path):
    def rates(trainer):
        groups = trainer.create_optimizer().param_groups
        head = {id(weight) for weight in trainer.model.prompt_encoder["default"].classifier.parameters()}
        return {
            (group["lr"], group["weight_decay"], id(weight) in head) for group in groups for weight in group["params"]
        }

    given = head_trainer(tmp_path, "single", weight_decay=0.1, head_learning_rate=0.5)
    assert rates(given) == {(3e-2, 0.1, False), (0.5, 0.1, True), (0.5, 0.0, True)}  # biases do not decay
    assert rates(head_trainer(tmp_path, "single")) == {(3e-2, 0.0, False), (1e-3, 0.0, True)}
    frozen = head_trainer(tmp_path, "single", prompt={"train_head": False})
    assert rates(frozen) == {(3e-2, 0.0, False)}
    before = {name: weight.clone() for name, weight in head_of(frozen.model).items()}
    frozen.args.max_steps = 1
    frozen.train()
    require_same(head_of(frozen.model), before)
    with refused("head_learning_rate is -1; give a number, 0 or more"):
        head_trainer(tmp_path, "single", head_learning_rate=-1)


def test_metrics_are_those_of_sklearn_and_scipy(tmp_path):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 3)), generator.integers(0, 3, 50)
    labels[::7] = -100
    given = labels >= 0
    right, chosen = labels[given], logits[given].argmax(1)
    found = head_metrics(logits, labels, SINGLE, ["a", "b", "c"], tags=False)
    assert found == pytest.approx(
        {
            "accuracy": (right == chosen).mean(),
            "f1": f1_score(right, chosen, average="macro"),
            "f1_micro": f1_score(right, chosen, average="micro"),
        }
    )
    several = (generator.normal(size=(50, 3)) > 0.5).astype(float)
    several[3] = np.nan
    kept = np.arange(50) != 3
    found = head_metrics(logits, several, MULTI, ["a", "b", "c"], tags=False)
    truth, chosen = several[kept].astype(int), (logits[kept] > 0).astype(int)
    assert found["accuracy"] == pytest.approx((truth == chosen).all(1).mean())
    assert found["f1"] == pytest.approx(f1_score(truth, chosen, average="macro"))
    assert found["f1_micro"] == pytest.approx(f1_score(truth, chosen, average="micro"))
    numbers = generator.normal(size=50)
    numbers[3] = np.nan
    found = head_metrics(logits[:, :1], numbers, REGRESSION, ["x"], tags=False)
    assert found["pearson"] == pytest.approx(pearsonr(logits[kept, 0], numbers[kept])[0])
    assert found["spearman"] == pytest.approx(spearmanr(logits[kept, 0], numbers[kept])[0])
    alike = head_metrics(np.ones((50, 1)), numbers, REGRESSION, ["x"], tags=False)
    assert np.isnan(alike["pearson"]) and np.isnan(alike["spearman"])
    assert head_metrics(logits, np.full(50, -100), SINGLE, ["a", "b", "c"], tags=False) == {}
    assert head_metrics(logits[:, :1], np.full(50, np.nan), REGRESSION, ["x"], tags=False) == {}


SPANS = [
    # tags, predicted tags, right spans, predicted spans, true spans
    ("O B-X I-X O", "O B-X I-X O", 1, 1, 1),
    ("B-X I-X O O", "B-X O O O", 0, 1, 1),
    ("B-X B-X", "B-X I-X", 0, 1, 2),
    ("B-X I-X", "I-X I-X", 1, 1, 1),  # as CoNLL counts: I begins a span where none goes on
    ("B-X B-Y", "B-X I-Y", 2, 2, 2),
    ("O O O", "B-Y O B-X", 0, 2, 0),
    ("B-X I-Y I-Y", "O B-Y I-Y", 1, 1, 2),
]


def test_spans_are_right_if_their_kind_and_both_ends_are():
    names = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    width = max(len(row[0].split()) for row in SPANS) + 1

    def ids(texts):
        rows = [[names.index(tag) for tag in text.split()] for text in texts]
        return np.array([row + [-100] * (width - len(row)) for row in rows])

    references, predictions = ids([row[0] for row in SPANS]), ids([row[1] for row in SPANS])
    found = head_metrics(predictions, references, SINGLE, names, tags=True)
    right, predicted, true = (sum(row[i] for row in SPANS) for i in (2, 3, 4))
    precision, recall = right / predicted, right / true
    assert found["precision"] == pytest.approx(precision) and found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    given = references >= 0
    assert found["accuracy"] == pytest.approx((references == predictions)[given].mean())
    plain = head_metrics(predictions, references, SINGLE, ["N", "V", "D", "P", "A"], tags=True)
    assert plain["f1"] == pytest.approx(f1_score(references[given], predictions[given], average="macro"))


def test_the_callers_metrics_get_logits_and_labels_of_rows_with_a_label(tmp_path):
    seen = {}

    def compute(prediction):
        seen[prediction.label_ids.dtype.kind, prediction.label_ids.ndim] = prediction
        return {"rows": len(prediction.label_ids)}

    own = {"compute_metrics": compute}
    for kind, shape in (("single", (5, 3)), ("numbers", (5,)), ("several", (5, 3)), ("tags", (5, 15, 4))):
        rows = rows_of(kind)
        trainer = head_trainer(tmp_path, kind, own=own)
        rows[2] = rows[2] | {"tags" if kind == "tags" else "label": None}
        found = trainer.evaluate(rows)
        assert found["eval_rows"] == 5
        prediction = seen.popitem()[1]
        assert prediction.predictions.shape[: 1 + (kind != "tags")] == shape[: 1 + (kind != "tags")]
        if kind == "numbers":
            assert prediction.label_ids.tolist() == [number for i, number in enumerate(NUMBERS) if i != 2]


def test_rows_of_token_ids_train_a_head_without_a_template(tmp_path):
    """With the token types that the backbone reads; labels are checked before training."""
    rows = [{"input_ids": [1, 5 + i, 9], "token_type_ids": [0, 0, 1], "labels": i % 3} for i in range(6)]

    def trainer(rows, **changes):
        return PromptTuningTrainer(
            tiny_classifier("bert", **changes),
            PromptTuningArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=1),
            train_dataset=rows,
            eval_dataset=rows,
            prompt_config=PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM"),
        )

    made = trainer(rows)
    made.train()
    with torch.no_grad():
        types = torch.tensor([row["token_type_ids"] for row in rows])
        ids = torch.tensor([row["input_ids"] for row in rows])
        labels = torch.tensor([row["labels"] for row in rows])
        outputs = made.model.eval()(input_ids=ids, token_type_ids=types, labels=labels)
    assert made.evaluate()["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    unlabelled = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    predicted = made.predict(unlabelled)
    assert np.allclose(predicted.predictions, outputs.logits.numpy(), atol=1e-5)
    assert predicted.label_ids.tolist() == [-100] * 6
    with refused("row 2 of the training data: labels hold 3, and the head has 3 labels"):
        trainer([rows[0], rows[1] | {"labels": 3}])
    with refused("row 1 of the training data has in input_ids the token id 400"):
        trainer([rows[0] | {"input_ids": [1, 400, 2]}])
    with refused("has the columns .* and no 'labels'"):
        trainer(unlabelled)
    with_template = head_trainer(tmp_path, "single")
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    assert with_template.evaluate(rows)["eval_loss"] > 0
    with refused("row 2 of the evaluation data: labels hold 3, and the head has 3 labels"):
        with_template.evaluate([rows[0], rows[1] | {"labels": 3}])


def test_streams_and_other_names_of_classes(tmp_path):
    """A stream trains if its classes are given; a split whose ClassLabel has another order is read by name."""
    rows = Dataset.from_list(rows_of("single"))
    names = ["complaint", "other", "praise"]
    template = ClassTemplate("{message}", "label", names)
    args = PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2)

    def run(data, **own):
        set_seed(0)
        options = dict(eval_dataset=rows, processing_class=tokenizer_with_cls(), template=template)
        config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM")
        trainer = PromptTuningTrainer(
            tiny_classifier("bert"), args, train_dataset=data, prompt_config=config, **options | own
        )
        trainer.train()
        return trainer

    trainer = run(rows.to_iterable_dataset())
    with refused("the training data is a stream, whose classes are not known before"):
        run(rows.to_iterable_dataset(), template=TEXT)
    turned = rows.cast_column("label", ClassLabel(names=names[::-1]))
    assert turned[0]["label"] == 2
    expected = trainer.evaluate(rows)
    assert trainer.evaluate(turned)["eval_loss"] == expected["eval_loss"]
    found = trainer.evaluate_transfer({"other": turned})
    assert found["transfer_other_loss"] == expected["eval_loss"]
    assert trainer.model.info.transfer["other"]["rows"] == 6


def test_evaluation_rows_with_unknown_labels_are_refused(tmp_path):
    rows = rows_of("single")
    wrong = [*rows[:2], {"message": "x", "label": "rant"}]
    with refused("row 3 of the evaluation data: the label 'rant' .* is none of the classes 'complaint', 'other', 'pr"):
        head_trainer(tmp_path, "single", eval_rows=wrong)
    trainer = head_trainer(tmp_path, "single")
    with refused("row 3 of the test data: the label 'rant'"):
        trainer.predict(wrong)
    with refused("row 1 of the training data: the row has no label"):
        head_trainer(tmp_path, "single", rows=[{"message": "x", "label": None}, *rows])
    tags = rows_of("tags")
    with refused("row 1 of the evaluation data: the label 'B-Z'"):
        head_trainer(tmp_path, "tags", eval_rows=[tags[0] | {"tags": ["B-Z", "O", "O", "O"]}])


def test_weights_that_are_refused(tmp_path):
    for kind, values, message in (
        ("single", {"class_weights": {"complaint": 1}}, "class_weights has no weight for 'other'; give a weight for"),
        ("single", {"class_weights": dict.fromkeys(["complaint", "other", "praise", "x"], 1)}, "has 'x', which is no"),
        ("single", {"class_weights": [1, 2]}, r"class_weights is \[1, 2\]; give 'balanced', or a number, 0 or more"),
        ("single", {"class_weights": [1, 2, -1]}, "give 'balanced', or a number, 0 or more"),
        ("single", {"class_weights": [0, 0, 0]}, "with which no label counts"),
        ("single", {"class_weights": "often"}, "class_weights is 'often', neither 'balanced' nor JSON"),
        (
            "single",
            {"pos_weight": [1, 1, 1]},
            "pos_weight is given, which is for the problem type multi_label_classification, and that of the labels is "
            "single_label_classification; give class_weights in its place, which weighs each row by its label",
        ),
        ("numbers", {"pos_weight": [1]}, "that of the labels is regression; leave it out"),
        (
            "several",
            {"class_weights": [1, 1, 1]},
            "class_weights is given, which is for .*; give pos_weight in its place, which weighs the labels that",
        ),
        ("numbers", {"class_weights": [1]}, "class_weights is given, which is for the problem type single_label"),
        ("numbers", {"label_smoothing_factor": 0.1}, "label_smoothing_factor is given, which is for"),
    ):
        with refused(message):
            head_trainer(tmp_path, kind, **values)
    names = dict(enumerate(["complaint", "other", "praise", "rant"]))
    named = tiny_classifier("bert", id2label=names, num_labels=4)
    with refused("class_weights is 'balanced', and no training row has the label 'rant'"):
        head_trainer(tmp_path, "single", backbone=named, class_weights="balanced")


def test_what_a_trainer_refuses_for_heads_and_for_language_models(tmp_path):
    args = PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none")
    tokenizer, config = tokenizer_with_cls(), PromptTuningConfig(num_virtual_tokens=2)

    def make(backbone, template, args=args, rows=None, **options):
        return PromptTuningTrainer(
            backbone, args, None, rows or rows_of("single"), None, tokenizer, template, config, **options
        )

    text, tagger, writer = tiny_classifier("bert"), tiny_classifier("bert", "TOKEN_CLS"), tiny_model("llama")
    ranking = PromptTemplate("{message}", label_column="label")
    for backbone, template, message in (
        (text, WORDS, "template is a TagTemplate, and the backbone's head is for SEQ_CLS; give a ClassTemplate"),
        (text, ChatTemplate(), "template is a ChatTemplate, and the backbone's head is for SEQ_CLS"),
        (
            text,
            PromptTemplate("{message}", target="{label}"),
            "target is given, and the backbone has a classification",
        ),
        (
            tagger,
            ranking,
            "template is a PromptTemplate, and the backbone's head is for TOKEN_CLS; give a TagTemplate",
        ),
        (writer, TEXT, "template is a ClassTemplate, which is for a head, and"),
    ):
        with refused(message):
            make(backbone, template)
    words = PromptTemplate("{message}", label_column="label", label_words={"complaint": "bad"})
    with refused("label_words is given, and the backbone has a classification head"):
        make(text, words)
    with refused("teacher is given, and a head learns labels"):
        make(text, TEXT, teacher=Teacher(text="Be nice."))
    with refused("layout is 'cached'; give auto, packed, padded to a model with a head"):
        make(text, TEXT, args=PromptTuningArguments(str(tmp_path), report_to="none", layout="cached"))
    for name in ("head_learning_rate", "class_weights", "pos_weight"):
        given = PromptTuningArguments(str(tmp_path), report_to="none", use_cpu=True, **{name: 1})
        with refused(f"{name} is given, and is for a backbone with a classification head"):
            make(writer, ranking, args=given)
    with refused("has 66 tokens, and behind the prompt the backbone has positions for 62"):
        make(text, TEXT, rows=[{"message": "dog " * 64, "label": "a"}, *rows_of("single")[:5]])
    state = {name: value.requires_grad for name, value in text.named_parameters()}
    assert all(state.values())  # the backbone is not frozen by a run that was refused


def test_a_template_of_a_language_model_is_read_for_a_head(tmp_path):
    ranking = PromptTemplate("{message}", label_column="label", max_source_length=9)
    args = PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = PromptTuningTrainer(
        tiny_classifier("bert"),
        args,
        train_dataset=rows_of("single"),
        processing_class=tokenizer_with_cls(),
        template=ranking,
        prompt_config=PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="CLASS_LABELS"),
    )
    assert trainer.rows.tokenizer.template == ClassTemplate(
        "{message}", "label", ["complaint", "other", "praise"], SINGLE, max_source_length=9
    )
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 9
    words = [tokenizer_with_cls()(name, add_special_tokens=False)["input_ids"] for name in ("complaint", "other")]
    embed = trainer.model.word_embeddings.weight
    expected = torch.stack([embed[ids].mean(0) for ids in words])
    assert torch.allclose(trainer.model.prompt, expected, atol=1e-6)


def test_pipelines_of_language_models_refuse_a_head_with_a_template(tmp_path):
    model = get_prompt_tuning_model(
        backbone_of("single"),
        PromptTuningConfig(num_virtual_tokens=2),
        tokenizer_with_cls(),
        ClassTemplate("{message}", "label", ["a", "b", "c"], SINGLE),
    )
    with refused("with a classification head, and this is for language models"):
        check_writes_text(model)
