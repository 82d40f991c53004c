"""What is told of a prompt's vectors and of what they do, against values known beforehand."""

import json
import math

import pytest
import torch
from transformers.models.llama import modeling_llama

from hf_prompt_tuning import (
    PromptMismatchError,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    inspect_prompt,
)
from hf_prompt_tuning.data.collator import DataCollatorForPromptTuning
from hf_prompt_tuning.data.tokenization import PromptTokenizer
from hf_prompt_tuning.inspection.comparison import compare_vectors
from hf_prompt_tuning.models.scoring import rank_labels
from hf_prompt_tuning.models.vocabulary import nearest_tokens, nearest_words, percentiles, vocabulary_norms
from tests.shared.tiny_models import tiny_model

TEMPLATE = PromptTemplate(
    "Message : {message} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
)


def prompt_model(tokenizer, name="llama", template=TEMPLATE, backbone=None, **config):
    config = config or dict(num_virtual_tokens=4, prompt_tuning_init_text="Classify if the message")
    return get_prompt_tuning_model(backbone or tiny_model(name), PromptTuningConfig(**config), tokenizer, template)


def put(model, vectors):
    with torch.no_grad():
        model.prompt.copy_(vectors)


# --- the vectors ---


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_prompt_of_known_words_is_nearest_to_them(tokenizer, name):
    """Also for Gemma, whose module scales what its embedding matrix holds."""
    words = tokenizer(" the message is a complaint", add_special_tokens=False)["input_ids"]
    model = prompt_model(tokenizer, name, num_virtual_tokens=len(words), prompt_tuning_init="FIRST_VOCAB")
    put(model, model.word_embeddings(torch.tensor(words)).float())
    (found,) = inspect_prompt(model, tokenizer).prompts
    for position, token in zip(found.positions, words, strict=True):
        for nearest in (position.by_cosine[0], position.by_distance[0]):
            assert (nearest.token_id, nearest.text) == (token, tokenizer.decode([token]))
            assert nearest.cosine == pytest.approx(1, abs=1e-6) and nearest.distance == 0
        assert len(position.by_cosine) == len(position.by_distance) == 5
        cosines = [word.cosine for word in position.by_cosine]
        assert cosines == sorted(cosines, reverse=True)
        distances = [word.distance for word in position.by_distance]
        assert distances == sorted(distances)


def test_nearest_tokens_are_those_of_the_whole_matrix(monkeypatch):
    """In chunks that do not divide it, against all at once; rows behind `size` are not looked at."""
    monkeypatch.setattr("hf_prompt_tuning.models.vocabulary.CHUNK", 33)
    embed, size = tiny_model("llama").get_input_embeddings(), 390
    vectors = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    vectors[0] = embed.weight[395].detach()
    matrix = embed.weight.detach()[:size]
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], matrix[None], dim=2)
    distances = (vectors[:, None] - matrix[None]).norm(dim=2)
    by_cosine = nearest_tokens(vectors, embed, size, 4)
    assert torch.equal(by_cosine.ids, cosines.topk(4, dim=1).indices)
    torch.testing.assert_close(by_cosine.distances, distances.gather(1, by_cosine.ids))
    by_distance = nearest_tokens(vectors, embed, size, 4, by_distance=True)
    assert torch.equal(by_distance.ids, distances.topk(4, dim=1, largest=False).indices)
    torch.testing.assert_close(by_distance.cosines, cosines.gather(1, by_distance.ids))
    assert not torch.equal(by_cosine.ids, by_distance.ids)


def test_the_cards_words_are_the_same(tokenizer):
    model = prompt_model(tokenizer)
    words = nearest_words(model.prompt, model.word_embeddings, tokenizer, how_many=2)
    (found,) = inspect_prompt(model, tokenizer, words=2).prompts
    assert words == [[[w.text, round(w.cosine, 4)] for w in position.by_cosine] for position in found.positions]


def test_norms_stand_among_the_vocabularys(tokenizer):
    model = prompt_model(tokenizer)
    norms = vocabulary_norms(model.word_embeddings, 400)
    assert torch.equal(norms, model.word_embeddings.weight.detach().norm(dim=1).sort().values)
    direction = torch.zeros(32).index_fill(0, torch.tensor([0]), 1.0)
    lengths = torch.stack([norms[0] / 2, (norms[99] + norms[100]) / 2, norms[399] * 2, norms[200]])
    put(model, direction * lengths[:, None])
    (found,) = inspect_prompt(model, tokenizer).prompts
    assert [p.norm_percentile for p in found.positions] == [0, 25, 100, 50]
    assert [p.norm for p in found.positions] == pytest.approx(lengths.tolist())
    assert sum(found.vocabulary_norms["counts"]) == 400
    assert found.vocabulary_norms["quantiles"]["0"] == pytest.approx(norms[0].item())
    assert found.vocabulary_norms["quantiles"]["100"] == pytest.approx(norms[399].item())
    assert percentiles(torch.tensor([2.0]), torch.tensor([1.0, 2.0, 2.0, 3.0])).item() == 25  # shorter, not as long


def test_similarity_between_positions(tokenizer):
    model = prompt_model(tokenizer)
    vectors = torch.zeros(4, 32)
    vectors[0, 0], vectors[1, 0], vectors[2, 1], vectors[3, :2] = 2, -3, 1, 1
    put(model, vectors)
    (found,) = inspect_prompt(model, tokenizer).prompts
    half = math.sqrt(0.5)
    expected = [[1, -1, 0, half], [-1, 1, 0, -half], [0, 0, 1, half], [half, -half, half, 1]]
    torch.testing.assert_close(torch.tensor(found.similarity), torch.tensor(expected, dtype=torch.float32))


def test_how_far_each_has_moved(tokenizer):
    model = prompt_model(tokenizer)
    start = model.prompt.detach().clone()
    step = torch.zeros(4, 32)
    step[1, 3], step[2] = 2.0, -2 * start[2]  # one aside, one to its opposite
    put(model, start + step)
    (found,) = inspect_prompt(model, tokenizer).prompts
    moves = [position.moved for position in found.positions]
    norms = start.norm(dim=1).tolist()
    assert [move.distance for move in moves] == pytest.approx([0, 2, 2 * norms[2], 0], abs=1e-6)
    assert [move.relative for move in moves] == pytest.approx([0, 2 / norms[1], 2, 0], abs=1e-6)
    assert moves[0].cosine == pytest.approx(1) and moves[2].cosine == pytest.approx(-1)
    words = tokenizer("Classify if the message", add_special_tokens=False)["input_ids"][:4]
    assert [move.start.token_id for move in moves] == words
    assert [move.still_nearest for move in moves] == [True, False, False, True]
    assert found.notes.keys() == {"attention", "without"}


def test_a_start_that_is_not_known_is_said_to_be(tokenizer):
    model = prompt_model(tokenizer)
    model.prompt_encoder["default"].start, model.info.initialization = None, {}
    inspection = inspect_prompt(model, tokenizer)
    assert inspection.prompts[0].positions[0].moved is None
    assert "How far the vectors moved is not known: the vectors that the prompt started from are not known." in (
        inspection.to_text()
    )


# --- what they do ---


def test_attention_is_the_mean_of_the_backbones_own(tokenizer, messages):
    """Against the model called by hand with `output_attentions`, and with sums over prompt and text of 1."""
    model = prompt_model(tokenizer)
    (found,) = inspect_prompt(model, tokenizer, messages[:3]).prompts
    backbone = model.get_base_model()
    assert backbone.config._attn_implementation == "sdpa"  # as it was
    backbone.set_attn_implementation("eager")
    encoder, shares = PromptTokenizer(TEMPLATE, tokenizer, False), []
    for row in messages[:3]:
        ids = torch.tensor([encoder.encode(row)["input_ids"]])
        embeds = torch.cat([model.prompt[None], model.word_embeddings(ids)], dim=1)
        with torch.no_grad():
            layers = backbone(inputs_embeds=embeds, output_attentions=True).attentions
        each = [[[head[4:, p].mean() for p in range(4)] for head in layer[0]] for layer in layers]
        shares.append(torch.tensor(each).mean(1))
    expected = torch.stack(shares).mean(0)
    torch.testing.assert_close(torch.tensor(found.attention_by_layer), expected)
    torch.testing.assert_close(torch.tensor([p.attention for p in found.positions]), expected.mean(0))
    assert found.rows == 3


def test_a_text_that_looks_at_all_tokens_alike(tokenizer):
    """Without queries every score is 0: token t behind P vectors gives each of the P+t+1 that it sees the same."""
    backbone = tiny_model("llama")
    for layer in backbone.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    model = prompt_model(tokenizer, backbone=backbone)
    (found,) = inspect_prompt(model, tokenizer, [{"message": "never came", "label": None}]).prompts
    length = len(PromptTokenizer(TEMPLATE, tokenizer, False).source_ids({"message": "never came"})[0])
    expected = sum(1 / (4 + t + 1) for t in range(length)) / length
    assert [p.attention for p in found.positions] == pytest.approx([expected] * 4)
    assert found.notes["without"] == "the rows have no labels" and found.loss is None


@pytest.mark.parametrize("name", ["t5", "bart", "bloom", "mpt", "opt", "gpt2"])
def test_other_backbones_give_attentions(tokenizer, messages, name):
    (found,) = inspect_prompt(prompt_model(tokenizer, name), tokenizer, messages[:2]).prompts
    shares = torch.tensor(found.attention_by_layer)
    assert shares.shape == (2, 4) and (shares > 0).all() and (shares.sum(1) < 1).all()
    assert found.loss > 0 and all(p.loss_without != found.loss for p in found.positions)


def test_a_backbone_without_attention_says_so(tokenizer, messages):
    (found,) = inspect_prompt(prompt_model(tokenizer, "mamba"), tokenizer, messages[:2]).prompts
    assert found.notes == {"attention": "MambaForCausalLM gives no attentions."}
    assert found.positions[0].attention is None and found.positions[0].loss_without is not None


def test_eager_code_that_is_another_model_is_not_believed(tokenizer, messages, monkeypatch):
    usual = modeling_llama.eager_attention_forward

    def broken(*args, **kwargs):
        output, attentions = usual(*args, **kwargs)
        return 2 * output, attentions

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", broken)
    model = prompt_model(tokenizer)
    (found,) = inspect_prompt(model, tokenizer, messages[:2]).prompts
    assert "LlamaForCausalLM predicts otherwise when its attention is computed" in found.notes["attention"]
    assert found.attention_by_layer == []


def reference(model, tokenizer, rows):
    """Loss and accuracy of the prompt that is on the model, row by row."""
    encoder = PromptTokenizer(TEMPLATE, tokenizer, False)
    ids, collate = encoder.label_token_ids, DataCollatorForPromptTuning(tokenizer)
    lost = tokens = right = 0
    for row in rows:
        encoded = encoder.encode(row)
        scores = rank_labels(model, collate([{k: encoded[k] for k in ("input_ids", "labels")}]), ids, False)[0]
        gold = encoded["label"]
        lost, tokens = lost - scores[gold].item(), tokens + len(ids[gold])
        right += int(scores.argmax()) == gold
    return lost / tokens, right / len(rows)


def test_rows_of_a_list_may_have_other_columns(tokenizer, messages):
    """The columns are those of all rows, in any order."""
    model = prompt_model(tokenizer)
    rows = [{"message": "never came"}, *messages[:3]]
    for given in (rows, rows[::-1]):
        (found,) = inspect_prompt(model, tokenizer, given).prompts
        assert (found.rows, found.labelled_rows) == (4, 3)
    with pytest.raises(PromptTuningError, match="row 2 of the given data is None"):
        inspect_prompt(model, tokenizer, [messages[0], None])


def test_each_position_removed_is_the_shorter_prompt(tokenizer, messages):
    """Against a model that has nothing but the other vectors; rows without a label are left out."""
    model = prompt_model(tokenizer)
    unlabelled = {"message": "the old town", "label": None}
    (found,) = inspect_prompt(model, tokenizer, [unlabelled, *messages], batch_size=5).prompts
    assert (found.rows, found.labelled_rows) == (13, 12)
    loss, accuracy = reference(model, tokenizer, messages)
    assert found.loss == pytest.approx(loss, rel=1e-5) and found.accuracy == accuracy
    for left_out, position in enumerate(found.positions):
        shorter = prompt_model(tokenizer, num_virtual_tokens=3, prompt_tuning_init="FIRST_VOCAB")
        put(shorter, torch.cat([model.prompt[:left_out], model.prompt[left_out + 1 :]]))
        loss, accuracy = reference(shorter, tokenizer, messages)
        assert position.loss_without == pytest.approx(loss, rel=1e-5)
        assert position.accuracy_without == accuracy
    assert len({round(position.loss_without, 4) for position in found.positions}) == 4


def test_without_a_position_that_nothing_sees_nothing_changes(tokenizer):
    """Two layers with a window of 4 (three tokens back each) see six tokens back, and no farther.

    The first prediction is made in column 9, the last of the source; columns 0 to 2 hold positions 1 to 3.
    """
    template = PromptTemplate("{message}", label_column="label", label_words={"1": "complaint", "2": "no complaint"})
    rows = [{"message": "never came", "label": "1"}, {"message": "great help", "label": "2"}]
    assert {len(PromptTokenizer(template, tokenizer, False).source_ids(row)[0]) for row in rows} == {4}
    model = prompt_model(
        tokenizer,
        template=template,
        backbone=tiny_model("mistral", sliding_window=4),
        num_virtual_tokens=6,
        prompt_tuning_init="FIRST_VOCAB",
    )
    (found,) = inspect_prompt(model, tokenizer, rows).prompts
    changes = [abs(position.loss_without - found.loss) for position in found.positions]
    assert changes[:3] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(change > 1e-4 for change in changes[3:])
    assert [position.accuracy_without for position in found.positions[:3]] == [found.accuracy] * 3


def test_a_prompt_of_one_vector_is_compared_with_none(tokenizer, messages):
    model = prompt_model(tokenizer, num_virtual_tokens=1, prompt_tuning_init="FIRST_VOCAB")
    (found,) = inspect_prompt(model, tokenizer, messages).prompts
    with model.disable_adapter():
        loss, accuracy = reference(model, tokenizer, messages)
    assert found.positions[0].loss_without == pytest.approx(loss, rel=1e-5)
    assert found.positions[0].accuracy_without == accuracy
    assert "cosine" in inspect_prompt(model, tokenizer).to_html()


def test_free_text_has_a_loss_and_no_accuracy(tokenizer):
    template = PromptTemplate("Message : {message}", target="{answer}")
    model = prompt_model(tokenizer, template=template)
    rows = [{"message": "never came", "answer": "so sorry"}, {"message": "thank you", "answer": "great help"}]
    (found,) = inspect_prompt(model, tokenizer, rows).prompts
    encoder, lost, tokens = PromptTokenizer(template, tokenizer, False), 0.0, 0
    for row in rows:
        encoded = encoder.encode(row)
        ids, labels = (torch.tensor([encoded[name]]) for name in ("input_ids", "labels"))
        count = int((labels >= 0).sum())
        lost, tokens = lost + model(input_ids=ids, labels=labels).loss.item() * count, tokens + count
    assert found.loss == pytest.approx(lost / tokens, rel=1e-5)
    assert found.accuracy is None and found.positions[0].accuracy_without is None
    assert found.positions[0].loss_without is not None and found.targets == ["{answer}"]


# --- several ---


def test_tasks_are_compared_by_their_means_and_by_all_pairs():
    a, b, c = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[2.0, 0]]), torch.tensor([[0.0, -1], [0, -3], [0, -5]])
    compared = compare_vectors({"a": a, "b": b, "c": c})
    half = math.sqrt(0.5)
    torch.testing.assert_close(
        torch.tensor(compared.mean_cosine), torch.tensor([[1, half, -half], [half, 1, 0], [-half, 0, 1]])
    )
    torch.testing.assert_close(
        torch.tensor(compared.pairwise_cosine), torch.tensor([[0.5, 0.5, -0.5], [0.5, 1, 0], [-0.5, 0, 1]])
    )
    assert compared.transfer == {"a": ["b", "c"], "b": ["a", "c"], "c": ["b", "a"]}
    with pytest.raises(PromptTuningError, match=r"different widths \(a: 2, d: 3\); compare prompts of one backbone"):
        compare_vectors({"a": a, "d": torch.ones(1, 3)})


def test_folders_are_inspected_together(tokenizer, tmp_path, messages, monkeypatch):
    other = PromptTemplate("{text}", target="{answer}")
    first, second = prompt_model(tokenizer), prompt_model(tokenizer, template=other, num_virtual_tokens=3)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    paths = [tmp_path / "first", tmp_path / "second"]
    found = inspect_prompt(paths, tokenizer, messages, backbone=tiny_model("llama"))
    alone = inspect_prompt(first, tokenizer, messages).prompts[0]
    assert [one.name for one in found.prompts] == [str(path) for path in paths]
    assert found.prompts[0].positions == alone.positions and found.prompts[0].loss == alone.loss
    assert "{text} is no column" in found.prompts[1].notes["without"]
    with pytest.raises(PromptTuningError, match="revision is 'v1', and 2 prompts are given; give their folders"):
        inspect_prompt(paths, tokenizer, backbone=tiny_model("llama"), revision="v1")
    assert [len(one.positions) for one in found.prompts] == [4, 3]
    assert found.prompts[1].positions[0].moved.distance == 0  # from its file: it started from sampled words
    means = [model.prompt.detach().mean(0) for model in (first, second)]
    expected = torch.nn.functional.cosine_similarity(*means, dim=0).item()
    assert found.comparison.mean_cosine[0][1] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(PromptTuningError, match="a prompt is given twice"):
        inspect_prompt([paths[0], paths[0]], tokenizer, backbone=tiny_model("llama"))
    given, load = [], type(first).load_adapter
    monkeypatch.setattr(type(first), "load_adapter", lambda *args, **kw: given.append(kw) or load(*args, **kw))
    inspect_prompt(paths, tokenizer, backbone=tiny_model("llama"), local_files_only=True, ignore_mismatch=True)
    assert given == [{"local_files_only": True, "ignore_mismatch": True}]


def test_all_prompts_of_a_model_and_the_model_as_it_was(tokenizer, messages):
    model = prompt_model(tokenizer)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    model.train()
    found = inspect_prompt(model, tokenizer, messages)
    assert [one.name for one in found.prompts] == ["default", "other"]
    assert "other has no template" in found.prompts[1].notes["without"]
    assert model.training and model.active_adapter == "default" and model.prompt.requires_grad
    assert len(model.prompt) == 4


def test_nothing_on_a_shared_backbone_changes_during_the_call(tokenizer, messages, tmp_path):
    """Another thread may train on it meanwhile."""
    model = prompt_model(tokenizer)
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    model.train()
    backbone, seen = model.get_base_model(), set()

    def look(*_):
        modes = (model.training, backbone.training, backbone.model.layers[0].training)
        seen.add((modes, backbone.config._attn_implementation, model.active_adapter))

    backbone.model.layers[0].mlp.register_forward_pre_hook(look)
    (found, _) = inspect_prompt(model, tokenizer, messages).prompts
    assert found.attention_by_layer and found.positions[0].loss_without
    (loaded,) = inspect_prompt(tmp_path, tokenizer, messages, backbone=backbone).prompts
    assert loaded.loss == found.loss
    assert seen == {((True,) * 3, "sdpa", "default")}
    assert not any(module._forward_hooks for module in backbone.modules())


def test_what_cannot_be_inspected(tokenizer, tmp_path, messages):
    model = prompt_model(tokenizer)
    with pytest.raises(PromptTuningError, match=r"tokenizer is not given; give it as tokenizer="):
        inspect_prompt(model)
    with pytest.raises(PromptTuningError, match=r"\{message\} is no column of the given data"):
        inspect_prompt(model, tokenizer, [{"text": "x", "label": "1"}])
    with pytest.raises(PromptTuningError, match="has no template, by which"):
        inspect_prompt(prompt_model(tokenizer, template=None), tokenizer, messages)
    with pytest.raises(PromptTuningError, match="there is no prompt"):
        inspect_prompt([], tokenizer)
    with pytest.raises(PromptTuningError, match="has no rows"):
        inspect_prompt(model, tokenizer, [])
    model.save_pretrained(tmp_path)
    with pytest.raises(PromptMismatchError, match="architecture"):
        inspect_prompt(tmp_path, tokenizer, backbone=tiny_model("gpt2"))


def test_json_holds_all_of_it(tokenizer, messages):
    found = inspect_prompt(prompt_model(tokenizer), tokenizer, messages[:2])
    values = json.loads(found.to_json())
    assert values["comparison"] is None
    one = values["prompts"][0]
    assert one["positions"][0]["by_cosine"][0]["text"] == found.prompts[0].positions[0].by_cosine[0].text
    assert one["positions"][3]["loss_without"] == found.prompts[0].positions[3].loss_without
    assert one["attention_by_layer"] == found.prompts[0].attention_by_layer
    found.prompts[0].positions[1].loss_without = math.nan
    assert json.loads(found.to_json())["prompts"][0]["positions"][1]["loss_without"] is None
