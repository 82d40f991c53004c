"""What `forward` and `generate` are called with beside ids: as the backbone by hand, or refused by name."""

import copy
import inspect
import math

import numpy
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from hf_prompt_tuning import LabelSearch, PromptTuningError, PromptTuningModelForCausalLM
from hf_prompt_tuning.models import generation
from hf_prompt_tuning.models.call_arguments import OF_FORWARD, check_taken
from tests.shared.reference import behind, greedy, pad, ragged_rows, tiny_prompt_model, with_prompts

OPTIONS = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
ROWS = ragged_rows([7, 2, 5])
NAMES = ["default", "other", "__base__"]
FAMILIES = ["llama", "gpt2", "bloom", "opt", "gemma", "mpt"]


class NoOthers:
    """A backbone that takes what it names alone."""

    def forward(self, input_ids, attention_mask=None): ...


def three(name):
    return with_prompts(tiny_prompt_model(name, random_range=1.0), other=3).eval()


def texts(side="left"):
    batch = pad(ROWS, side)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@torch.no_grad()
def by_hand(model, ids, adapter, **kwargs):
    """Logits [T, V] of the text's columns, the backbone called with `[prompt | embedded text]`."""
    vectors = torch.zeros(0, 32) if adapter == "__base__" else model.prompt_encoder[adapter].embedding.weight
    embeds = torch.cat([vectors, model.base_model.get_input_embeddings()(ids)])[None]
    return model.base_model(inputs_embeds=embeds, use_cache=False, **kwargs).logits[0, len(vectors) :]


class TestShapes:
    def refused(self, model, message, **values):
        batch = texts() | values
        for call in (model, model.generate) if "labels" not in values else (model,):
            with pytest.raises(PromptTuningError, match=message):
                call(**batch)

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_of_texts_and_masks(self, name):
        model, ids = tiny_prompt_model(name).eval(), texts()["input_ids"]
        for mask in (ids[:, 1:], ids[:2], ids[0], torch.ones(3, 1, 7, 7), torch.ones(3, 12)):
            self.refused(model, r"attention_mask has shape \[.*\], and the texts are \[3, 7\]", attention_mask=mask)
        self.refused(model, "attention_mask has shape none", attention_mask=[[1] * 7] * 3)
        self.refused(model, "attention_mask holds 2; give 1 on tokens", attention_mask=torch.full((3, 7), 2))
        self.refused(model, "attention_mask holds -inf", attention_mask=torch.full((3, 7), -torch.inf))
        self.refused(model, r"input_ids has shape \[7\]; give a tensor of \[B, T\]", input_ids=ids[0])
        self.refused(model, r"input_ids has shape \[0, 7\]; give a tensor", input_ids=ids[:0])
        self.refused(model, r"input_ids has shape none \(a list\)", input_ids=ids.tolist())
        self.refused(model, r"input_ids has dtype torch.float32; give token ids", input_ids=ids.float())
        self.refused(
            model,
            "input_ids have the token id 400, and the backbone's embedding has rows",
            input_ids=ids + 400 - ids.max(),
        )
        self.refused(model, "input_ids have the token id -100, and", input_ids=ids - 100 - ids.min())
        none = {"input_ids": None}
        self.refused(
            model,
            r"inputs_embeds has shape \[3, 7, 5\]; give a tensor of \[B, T, 32\]",
            **none,
            inputs_embeds=torch.ones(3, 7, 5),
        )
        self.refused(model, r"inputs_embeds has shape \[7, 32\]", **none, inputs_embeds=torch.ones(7, 32))
        self.refused(model, r"inputs_embeds has dtype torch.int64", **none, inputs_embeds=torch.ones(3, 7, 32).long())
        self.refused(model, "give either input_ids or inputs_embeds", **none)

    @pytest.mark.parametrize("only_labelled", [False, True])
    def test_of_labels(self, only_labelled):
        model, labels = tiny_prompt_model("llama"), pad(ROWS, "left")["labels"]
        kind = {"only_labelled": only_labelled}
        for wrong in (labels[:, 1:], labels[:2], labels[0], labels[..., None]):
            self.refused(
                model, r"labels has shape \[.*\]; give \[3, 7\], a label for each token", labels=wrong, **kind
            )
        self.refused(model, "labels has shape none", labels=labels.tolist(), **kind)
        self.refused(model, "labels has dtype torch.float32", labels=labels.float(), **kind)
        self.refused(model, "labels have the token id 400, and", labels=labels.clamp(min=400), **kind)
        self.refused(model, "labels have the token id -1, and", labels=labels.clamp(max=-1), **kind)
        if only_labelled:
            self.refused(model, "only_labelled is given without labels", labels=None, **kind)

    def test_of_an_encoder_decoders_labels(self):
        model = tiny_prompt_model("bart")
        for only_labelled in (False, True):
            kind = {"only_labelled": only_labelled}
            wrong = torch.ones(2, 4, dtype=torch.long)
            self.refused(
                model, r"labels has shape \[2, 4\]; give \[3, T'\], a row for each text", labels=wrong, **kind
            )
            self.refused(model, r"labels has shape \[3, 0\]; give", labels=torch.ones(3, 0).long(), **kind)
            self.refused(model, "labels have the token id 400", labels=torch.full((3, 4), 400), **kind)

    def test_of_positions(self):
        model, batch = tiny_prompt_model("llama"), texts()
        for wrong in (torch.arange(6)[None], torch.arange(7), torch.zeros(3, 7).long(), torch.arange(12)[None]):
            for call in (model, model.generate):
                with pytest.raises(PromptTuningError, match="position_ids are given that do not count each"):
                    call(**batch, position_ids=wrong)
        for kind in (list, numpy.array):
            self.refused(
                model, f"position_ids is a .*{kind.__name__[-4:]}", position_ids=kind([[0, 1, 2, 3, 4, 5, 6]])
            )
        cache = model(**batch, use_cache=True).past_key_values
        with pytest.raises(PromptTuningError, match="position_ids is a list; give a tensor"):
            model(input_ids=torch.ones(3, 1).long(), past_key_values=cache, position_ids=[[7]])
        natural = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(model(**batch, position_ids=natural).logits, model(**batch).logits)

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_of_candidates_that_have_no_length(self, name):
        model = tiny_prompt_model(name).eval()
        with pytest.raises(PromptTuningError, match="candidates is a generator; give a list of lists"):
            model(**texts(), candidates=(words for words in [[5, 6]]))

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_of_one_goal(self, name):
        model, ids = tiny_prompt_model(name).eval(), texts()["input_ids"]
        for wrong in ({"labels": ids}, {"only_labelled": True}):
            with pytest.raises(PromptTuningError, match="is given with candidates, which alone are scored"):
                model(**texts(), candidates=[[5, 6]], **wrong)
        with pytest.raises(PromptTuningError, match="search is given without candidates"):
            model(**texts(), labels=ids, search=LabelSearch())

    @pytest.mark.parametrize("name", ["bloom", "mpt", "mamba", "t5"])
    def test_of_a_config_that_asks_for_tuples(self, name):
        """`return_dict` is False in a config that was saved so; these backbones then return tuples."""
        model, batch = tiny_prompt_model(name).eval(), pad(ROWS, "left")
        expected = model(**batch, only_labelled=True)
        tokens = model.generate(**texts(), **OPTIONS)
        model.get_base_model().config.return_dict = False
        model.use_layout() if name != "t5" else None
        assert model(**batch, only_labelled=True).loss.item() == expected.loss.item()
        assert torch.equal(model.generate(**texts(), **OPTIONS), tokens)

    def test_of_names_without_an_order(self):
        model = with_prompts(tiny_prompt_model("llama"), b=3)
        for wrong, kind in (({"default", "b", "__base__"}, "set"), ((name for name in "abc"), "generator")):
            self.refused(model, f"adapter_names is a {kind}; give a list with a name a row", adapter_names=wrong)

    @pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan, "0.1"])
    def test_of_smoothed_labels(self, smoothing):
        labels = pad(ROWS, "left")["labels"]
        message = f"label_smoothing is {smoothing!r}; give a share of the loss, from 0 to 1"
        self.refused(tiny_prompt_model("llama"), message, labels=labels, label_smoothing=smoothing)


class TestUnknown:
    def test_arguments(self):
        ids = texts()["input_ids"]
        with pytest.raises(PromptTuningError, match=r"token_type_ids is given, and NoOthers takes no such argument"):
            check_taken(NoOthers(), {"input_ids": ids, "token_type_ids": ids})
        for name in ("llama", "t5"):
            model = tiny_prompt_model(name)
            with pytest.raises(PromptTuningError, match=r"token_type_ids is given to generate, which .* not take"):
                model.generate(ids, token_type_ids=ids)
            with pytest.raises(PromptTuningError, match="max_new_token is given to generate"):
                model.generate(ids, max_new_token=3)
            with pytest.raises(PromptTuningError, match="inputs and input_ids are given, which are one"):
                model.generate(input_ids=ids, inputs=ids)
            with pytest.raises(PromptTuningError, match="generation_config is a dict; give a transformers Gener"):
                model.generate(ids, generation_config={"max_new_tokens": 2})

    @pytest.mark.parametrize("name", ["llama", "mpt"])
    def test_a_first_pass_in_chunks(self, name):
        """Where rows are computed anew they are in one piece, with the same result."""
        model = three(name)
        expected = [greedy(model, ids, 4, n) for (ids, _), n in zip(ROWS, NAMES, strict=True)]
        for asked in ({}, {"output_hidden_states": True}, {"use_cache": True}):
            out = model.generate(**texts(), adapter_names=NAMES, **OPTIONS, prefill_chunk_size=3, **asked)
            assert out[:, 7:].tolist() == expected
        with pytest.raises(PromptTuningError, match="token_healing is on, which writes"):
            model.generate(**texts(), token_healing=True)

    @pytest.mark.parametrize(
        ("asked", "why"), [({}, generation.NO_CHUNKS), ({"output_hidden_states": True}, "chunks are cut from ids")]
    )
    def test_chunks_that_are_not_cut_are_told_of_once(self, asked, why, monkeypatch, caplog):
        monkeypatch.setattr(generation, "COUNTS_CHUNKS_ON", False)
        generation._log_once.cache_clear()
        model, ids = tiny_prompt_model("llama").eval(), ROWS[0][0]
        whole = model.generate(ids[None], **OPTIONS)
        assert not caplog.messages
        for _ in range(2):
            assert model.generate(ids[None], **OPTIONS, prefill_chunk_size=3, **asked).tolist() == whole.tolist()
        (told,) = caplog.messages
        assert told.startswith(f"prefill_chunk_size is given and has no effect: {why}")

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_labels_and_candidates_of_other_integers(self, name):
        model, batch = tiny_prompt_model(name), pad(ROWS, "left")
        for only_labelled in (False, True):
            whole = model(**batch, only_labelled=only_labelled).loss
            narrow = batch | {"labels": batch["labels"].int(), "input_ids": batch["input_ids"].int()}
            assert model(**narrow, only_labelled=only_labelled).loss.item() == whole.item()
        scores = model(**texts(), candidates=[[5, 6], [7, 8]]).scores
        for dtype in (torch.long, torch.int32, torch.int16, torch.uint8):
            words = torch.tensor([[5, 6], [7, 8]], dtype=dtype)
            assert torch.equal(model(**texts(), candidates=words).scores, scores)

    def test_values_for_each_token(self):
        ids = texts()["input_ids"]
        with pytest.raises(PromptTuningError, match="cache_position is given, with a value for each token"):
            tiny_prompt_model("llama")(ids, cache_position=torch.arange(7))
        with pytest.raises(PromptTuningError, match="cache_params is given, and a prompt stands in front"):
            tiny_prompt_model("mamba")(ids, cache_params=DynamicCache())

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_token_types(self, side):
        """GPT-2 adds their embeddings; a prompt has type 0."""
        model, batch = three("gpt2"), texts(side)
        types = torch.randint(0, 9, batch["input_ids"].shape, generator=torch.Generator().manual_seed(3))
        out = model(**batch, token_type_ids=types, adapter_names=NAMES)
        for b, name in enumerate(NAMES):
            real = batch["attention_mask"][b].bool()
            length = 0 if name == "__base__" else len(model.prompt_encoder[name].embedding.weight)
            row = torch.cat([torch.zeros(length, dtype=torch.long), types[b, real]])[None]
            expected = by_hand(model, batch["input_ids"][b, real], name, token_type_ids=row)
            torch.testing.assert_close(out.logits[b, 5:][real], expected, rtol=1e-4, atol=1e-4)


class TestMisspelled:
    """Llama's `forward` takes any keyword, and does nothing with those that it does not know."""

    @pytest.mark.parametrize(
        ("wrong", "meant"),
        [
            ("atention_mask", "attention_mask"),
            ("positions_ids", "position_ids"),
            ("input_embeds", "inputs_embeds"),
            ("past_key_value", "past_key_values"),
            ("num_logits_to_keep", "logits_to_keep"),
            ("output_hidden_state", "output_hidden_states"),
            ("adapter_name", "adapter_names"),
            ("shift_label", "shift_labels"),
        ],
    )
    def test_is_refused(self, wrong, meant):
        ids = texts()["input_ids"]
        for name in ("llama", "gpt2"):
            model = three(name)
            with pytest.raises(PromptTuningError, match=f"{wrong} is given, .*; did you mean {meant}?"):
                model(ids, attention_mask=torch.ones_like(ids), **{wrong: ids})
        model = three("llama")
        cache = model(ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
        with pytest.raises(PromptTuningError, match=f"{wrong} is given, .*; did you mean"):
            model(ids[:, :1], past_key_values=cache, **{wrong: ids} if wrong != "past_key_value" else {wrong: cache})

    def test_other_names_go_to_the_backbone(self):
        """What its layers read, and what another backbone takes; all of it is known or like nothing known."""
        model, ids = three("llama"), texts()["input_ids"]
        expected = model(ids, attention_mask=torch.ones_like(ids)).logits
        others = dict(softcap=None, is_causal=True, label=torch.zeros(3), return_dict=True, my_kernel_option=3)
        assert torch.equal(model(ids, attention_mask=torch.ones_like(ids), **others).logits, expected)

    def test_the_names_are_those_of_forward(self):
        own = inspect.signature(PromptTuningModelForCausalLM.forward).parameters
        assert set(OF_FORWARD) == own.keys() - {"self", "kwargs"}


class TestPadsWithoutAMask:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba"])
    def test_are_told_by_their_token_in_generate(self, name, side):
        model, ids = three(name), texts(side)["input_ids"]
        for said in (
            OPTIONS,
            {"generation_config": GenerationConfig(**OPTIONS)},
            OPTIONS | {"eos_token_id": [3, 390]},
        ):
            out = model.generate(ids, adapter_names=NAMES, **said)
            assert torch.equal(out, model.generate(**texts(side), adapter_names=NAMES, **said))
        expected = [greedy(model, row, 4, n) for (row, _), n in zip(ROWS, NAMES, strict=True)]
        assert model.generate(ids, adapter_names=NAMES, **OPTIONS)[:, 7:].tolist() == expected

    def test_are_text_where_transformers_takes_them_for_text(self):
        model, ids = three("llama"), texts()["input_ids"]
        whole = [greedy(model, row, 4) for row in ids]
        for said in (
            {"pad_token_id": 0, "eos_token_id": 0},
            {"pad_token_id": None, "eos_token_id": [0, 3]},
            {"pad_token_id": 399},
        ):
            model.base_model.generation_config.pad_token_id = None
            out = model.generate(ids, **OPTIONS | {"max_new_tokens": 1} | said)
            assert out[:, 7:].tolist() == [row[:1] for row in whole]
        ones = torch.ones_like(ids)
        assert model.generate(ids, attention_mask=ones, **OPTIONS)[:, 7:].tolist() == whole
        assert torch.equal(model(ids).logits, model(ids, attention_mask=ones).logits)

    def test_are_read_as_text_by_forward_with_a_warning(self, caplog):
        model, ids = three("llama"), texts()["input_ids"]
        for call in (1, 2):
            expected = by_hand(model, ids[1], "default")
            torch.testing.assert_close(model(ids).logits[1, 5:], expected, rtol=1e-4, atol=1e-4)
            assert caplog.text.count("attention_mask is not given, and rows begin or end with the pad token") == 1, (
                call
            )


class TestLogitsToKeep:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_are_of_the_callers_columns(self, name, side):
        model, batch = three(name), pad(ROWS, side)
        batch["labels"][:, 0] = -100
        for names in (None, NAMES):
            whole = model(**batch, adapter_names=names)
            for keep in (1, 3, 0, torch.tensor([6, 11]), torch.tensor([[6, 5], [5, 7], [11, 9]])):
                out = model(**batch, adapter_names=names, logits_to_keep=keep)
                rows = torch.arange(3)[:, None]
                if isinstance(keep, int):
                    expected = whole.logits[:, -keep:]
                else:
                    expected = whole.logits[:, keep] if keep.dim() == 1 else whole.logits[rows, keep]
                torch.testing.assert_close(out.logits, expected)
                torch.testing.assert_close(out.loss, whole.loss)
        ids = batch["input_ids"][:1]
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])

    def test_and_generate(self):
        model, batch = three("llama"), texts()
        assert torch.equal(model.generate(**batch, **OPTIONS, logits_to_keep=3), model.generate(**batch, **OPTIONS))
        with pytest.raises(PromptTuningError, match="logits_to_keep is given to generate as a tensor"):
            model.generate(**batch, logits_to_keep=torch.tensor([3]))
        with pytest.raises(PromptTuningError, match=r"logits_to_keep is tensor.*; give how many of the last columns"):
            model(**batch, logits_to_keep=torch.tensor([40]))


def loop(model, steps, cache, mask=None, new=None, **first):
    """Greedy decoding by hand: each call gets the last token and the cache of the one before."""
    found, out = [], model(**first, past_key_values=cache, use_cache=True)
    last = first.get("attention_mask")
    tokens = out.logits[:, -1].argmax(-1)
    for _ in range(steps):
        found.append(tokens)
        if last is not None:
            last = torch.cat([last, torch.ones_like(last[:, :1])], dim=1)
        more = {"adapter_names": first.get("adapter_names"), "attention_mask": last}
        out = model(tokens[:, None], past_key_values=out.past_key_values, use_cache=True, **more)
        tokens = out.logits[:, -1].argmax(-1)
        assert out.logits.shape[1] == 1
    return torch.stack(found, dim=1).tolist()


class TestACache:
    @pytest.mark.parametrize("name", [*FAMILIES, "mistral"])
    @pytest.mark.parametrize("given", ["nothing", "empty", "static"])
    def test_holds_the_prompt(self, name, given):
        model = three(name)
        ids = torch.stack([row[:2] for row, _ in ROWS])
        caches = {"nothing": None, "empty": DynamicCache()}
        if given == "static":
            if name == "bloom":
                return  # whose forward takes no static cache, prompt or not
            caches["static"] = StaticCache(model.config, max_cache_len=16)
        names = ["default", "default", "default"]
        expected = [greedy(model, row, 4) for row in ids]
        with torch.no_grad():
            assert loop(model, 4, copy.deepcopy(caches[given]), input_ids=ids) == expected
            assert (
                loop(model, 4, caches[given], input_ids=ids, attention_mask=ids * 0 + 1, adapter_names=names)
                == expected
            )

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_of_fixed_size_has_room_for_the_prompt(self, name):
        """As large as rows are without a prompt, it would be written behind its end."""
        model, batch = three(name), texts("left")
        ids, prompt = batch["input_ids"][:1], 5
        room = ids.shape[1] + prompt + OPTIONS["max_new_tokens"] - 1
        expected = greedy(model, ids[0], 4)
        cache = StaticCache(model.config, max_cache_len=room)
        assert model.generate(ids, past_key_values=cache, **OPTIONS)[0, 7:].tolist() == expected
        message = "past_key_values has {} columns, and rows have {}, the prompt's among them; make it with max_cache"
        with pytest.raises(PromptTuningError, match=message.format(room - 1, room)):
            model.generate(ids, past_key_values=StaticCache(model.config, max_cache_len=room - 1), **OPTIONS)
        cache = StaticCache(model.config, max_cache_len=ids.shape[1] + prompt)
        with torch.no_grad():
            logits = model(ids, past_key_values=cache).logits
            torch.testing.assert_close(logits, model(ids).logits)
            with pytest.raises(PromptTuningError, match=message.format(12, 13)):
                model(ids[:, :1], past_key_values=cache)
            with pytest.raises(PromptTuningError, match=message.format(11, 12)):
                model(ids, past_key_values=StaticCache(model.config, max_cache_len=11))

    @pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
    def test_of_padded_rows_and_several_prompts(self, name):
        model, batch = three(name), texts("left")
        with torch.no_grad():
            expected = [greedy(model, row, 4, n) for (row, _), n in zip(ROWS, NAMES, strict=True)]
            assert loop(model, 4, None, **batch, adapter_names=NAMES) == expected
            with model.disable_adapter():
                assert loop(model, 3, None, **batch) == [greedy(model, row, 3, "__base__") for row, _ in ROWS]

    def test_of_several_new_tokens_and_positions(self):
        model = three("llama")
        ids = ROWS[0][0][None]
        whole = model(ids).logits
        for positions in (torch.arange(4, 7)[None], torch.arange(9, 12)[None], None):
            out = model(ids[:, :4], use_cache=True)
            more = model(ids[:, 4:], past_key_values=out.past_key_values, position_ids=positions)
            torch.testing.assert_close(more.logits, whole[:, -3:], rtol=1e-4, atol=1e-4)
            # As wide as the cache, too.
            out = model(ids[:, :4], use_cache=True)
            more = model(ids[:, 4:], past_key_values=out.past_key_values, attention_mask=torch.ones(1, 12).long())
            torch.testing.assert_close(more.logits, whole[:, -3:], rtol=1e-4, atol=1e-4)

    def test_given_to_generate(self):
        """A chat's turns: the whole text again, with the cache of the turn before."""
        model = three("llama")
        for ids in (ROWS[0][0][None], torch.stack([row[:2] for row, _ in ROWS])):
            for cache in (None, DynamicCache()):
                first = model.generate(ids, past_key_values=cache, return_dict_in_generate=True, **OPTIONS)
                more = torch.cat([first.sequences, ids[:, :2]], dim=1)
                expected = [greedy(model, row, 4) for row in more]
                out = model.generate(more, past_key_values=first.past_key_values, **OPTIONS)
                assert out[:, more.shape[1] :].tolist() == expected

    def test_states_of_new_tokens(self):
        model, ids = three("llama"), ROWS[0][0][None]
        options = OPTIONS | {"return_dict_in_generate": True}
        first = model.generate(ids, **options)
        more = torch.cat([first.sequences, ids[:, :2]], dim=1)
        states = model.generate(more, **options, output_hidden_states=True).hidden_states
        found = model.generate(more, past_key_values=first.past_key_values, **options, output_hidden_states=True)
        # The last token of the turn before was not computed.
        assert [step[0].shape[1] for step in found.hidden_states] == [3, 1, 1, 1]
        for layer, whole in zip(found.hidden_states[0], states[0], strict=True):
            torch.testing.assert_close(layer, whole[:, -3:], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["llama", "bloom"])
    def test_without_a_new_token_or_with_several_sequences(self, name):
        model, ids = three(name), ROWS[0][0][None]
        options = OPTIONS | {"return_dict_in_generate": True}
        first = model.generate(ids, **options)
        given = {"past_key_values": first.past_key_values}
        for text in (ids[:, :2], first.sequences[:, :-1]):
            message = f"holds 15 columns, and rows have {5 + text.shape[1]} with their prompt, so that no token is new"
            with pytest.raises(PromptTuningError, match=message):
                model.generate(text, **given, **OPTIONS)
        more = torch.cat([first.sequences, ids], dim=1)
        for asked in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            with pytest.raises(PromptTuningError, match="holds 1 rows, and 2 sequences are asked for each; leave out"):
                model.generate(more, **given, **OPTIONS | asked)
        assert model.generate(more, **given, **OPTIONS)[0, -4:].tolist() == greedy(model, more[0], 4)

    def test_that_is_not_known(self):
        model, ids = three("llama"), torch.stack([row[:2] for row, _ in ROWS])
        bare = model.base_model(ids, use_cache=True).past_key_values
        message = r"of which this model knows nothing, and a prompt stands in front of each call's texts. Give"
        for call, given in ((model, ids), (model.generate, torch.cat([ids, ids], 1))):
            with pytest.raises(PromptTuningError, match=message):
                call(given, past_key_values=copy.deepcopy(bare))

        def cache(**kwargs):
            return model(ids, use_cache=True, **kwargs).past_key_values

        last = ids[:, :1]
        cut = cache()
        cut.crop(-2)
        for given, kwargs, message in [
            (cut, {}, "was left with 7 columns of 3 rows"),
            (cache(), {"adapter_names": NAMES}, "holds 7 columns behind other prompts than these rows'"),
            (cache(), {"labels": last}, "labels is given with a filled past_key_values"),
            (cache(), {"only_labelled": True}, "only_labelled is given with a filled"),
            (cache(), {"token_type_ids": last}, "token_type_ids is given with a filled"),
            (cache(), {"attention_mask": torch.ones(3, 1)}, r"attention_mask has shape \[3, 1\], and past_key_values"),
            (
                cache(),
                {"attention_mask": torch.tensor([[0, 1, 1]] * 3)},
                r"attention_mask has shape \[3, 3\], and past_k",
            ),
            (
                cache(),
                {"position_ids": torch.zeros(3, 1)},
                "that do not count on from past_key_values",
            ),
            (((ids, ids),), {}, "past_key_values is a tuple; give a Cache"),
        ]:
            with pytest.raises(PromptTuningError, match=message):
                model(last, past_key_values=given, **kwargs)
        with pytest.raises(PromptTuningError, match="was left with 7 columns of 3 rows"):
            model(last[:1], past_key_values=cache())
        padded = three("mpt")(**texts("right"), use_cache=True).past_key_values
        with pytest.raises(PromptTuningError, match="past_key_values holds padded rows, and MptForCausalLM counts"):
            three("mpt")(last, past_key_values=padded)
        padded = model(**texts("right"), use_cache=True).past_key_values
        with pytest.raises(PromptTuningError, match="past_key_values holds padded rows, or rows of several lengths"):
            model.generate(torch.ones(3, 9).long(), past_key_values=padded)


class TestWhatGenerateMakesOfATextsIds:
    """Left to itself, transformers leaves these out, with a warning, where it is given embeddings."""

    ASKED = (
        {"encoder_repetition_penalty": 5.0},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 2},
    )

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", ["llama", "mamba", "t5", "bart"])
    def test_each_row_as_if_alone(self, name, side):
        model = three(name)
        for asked in self.ASKED:
            for beams in ({}, {"num_beams": 2, "num_return_sequences": 2}):
                options = OPTIONS | asked | beams | {"max_new_tokens": 5}
                out = model.generate(**texts(side), adapter_names=NAMES, **options)
                alone = [
                    row[-5:].tolist()
                    for (ids, _), n in zip(ROWS, NAMES, strict=True)
                    for row in model.generate(ids[None], adapter_names=[n], **options)
                ]
                assert out[:, -5:].tolist() == alone

    def test_penalty_by_hand(self):
        model, (ids, _) = three("llama"), ROWS[0]
        plain = model.generate(
            ids[None], max_new_tokens=1, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        scores = plain.logits[0][0].clone()
        scores[ids] = torch.where(scores[ids] < 0, scores[ids] / 5, scores[ids] * 5)
        out = model.generate(ids[None], max_new_tokens=1, encoder_repetition_penalty=5.0, pad_token_id=0)
        assert out[0, -1] == scores.argmax()

    def test_a_repetition_penalty_beside_a_shorter_prompt(self):
        model = three("llama")
        ids = torch.stack([row[:2] for row, _ in ROWS])
        options = OPTIONS | {"repetition_penalty": 50.0}
        for layout in ("cached", "packed"):
            model.use_layout(layout)
            out = model.generate(ids, adapter_names=NAMES, **options)
            for row, name, got in zip(ids, NAMES, out, strict=True):
                with behind(model, name):
                    alone = model.generate(row[None], **options)
                assert got[2:].tolist() == alone[0, 2:].tolist()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_model_whose_last_prompt_was_deleted(name):
    model, ids = tiny_prompt_model(name).eval(), texts()["input_ids"]
    bare = model.base_model.generate(ids, **OPTIONS)
    model.delete_adapter("default")
    labels = {"labels": ids, "only_labelled": True}
    for call in (lambda: model(ids), lambda: model.generate(ids, **OPTIONS), lambda: model(ids, **labels)):
        with pytest.raises(PromptTuningError, match="the model has no prompt; add one with add_adapter"):
            call()
    with model.disable_adapter():
        assert torch.equal(model.generate(ids, **OPTIONS), bare)
    assert torch.equal(model.generate(ids, adapter_names=["__base__"] * 3, **OPTIONS), bare)
