"""The heads under the tools that people train with: Trainer, PEFT, autocast, compile, pickle."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastbert.heads as heads
from fastbert import BertConfig, BertTokenizer, pack

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "actor", "the", "a"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map(chr, range(97, 123))]


def model(name, seed=0, **changes):
    torch.manual_seed(seed)
    return getattr(heads, name)(BertConfig(**{**SIZES, **changes}))


def batch(name, seed=0, B=3, S=11):
    """Padded arguments of a head, labels included."""
    generator = torch.Generator().manual_seed(seed)
    shape = (B, 2, S) if "Choice" in name else (B, S)
    ids = torch.randint(5, 80, shape, generator=generator)
    mask = torch.arange(S) < torch.randint(2, S, (*shape[:-1], 1), generator=generator)
    labels = torch.tensor([1, 0, 1])[:B]
    tokens = torch.where(torch.rand(shape, generator=generator) < 0.4, ids % 2, -100)
    named = {
        "BertForMaskedLM": {"labels": tokens},
        "BertForPreTraining": {"labels": tokens, "next_sentence_label": labels},
        "BertForTokenClassification": {"labels": tokens},
        "BertForQuestionAnswering": {"start_positions": labels, "end_positions": labels + 1},
    }
    return {"input_ids": ids, "attention_mask": mask, **named.get(name, {"labels": labels})}


class Reviews(Dataset):
    """Short reviews whose words tell their label."""

    def __init__(self, tokenizer, count=64):
        torch.manual_seed(1)
        self.tokenizer, self.items = tokenizer, []
        for number in range(count):
            label = number % 2
            tone = WORDS[3 * label : 3 * label + 3]
            picks = torch.randint(0, 3, (3,)).tolist()
            self.items.append((f"the {tone[picks[0]]} film a {tone[picks[1]]} plot", label))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        text, label = self.items[index]
        inputs = self.tokenizer(
            text, padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        inputs["labels"] = torch.tensor(label)
        return inputs


def small_tokenizer(**settings):
    return BertTokenizer(VOCABULARY, **settings)


def test_the_textbook_example_trains_a_classifier():
    dataset = Reviews(small_tokenizer())
    classifier = model("BertForSequenceClassification", hidden_dropout_prob=0.0).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        for batch in DataLoader(dataset, batch_size=8, shuffle=False):
            assert batch["input_ids"].dim() == 3
            optimizer.zero_grad()
            outputs = classifier(batch["input_ids"], labels=batch["labels"])
            outputs.loss.backward()
            optimizer.step()
            losses.append(outputs.loss.item())
    assert sum(losses[-4:]) < 0.2 * sum(losses[:4])
    classifier.eval()
    texts, labels = zip(*dataset.items, strict=True)
    with torch.no_grad():
        guesses = classifier(small_tokenizer().pack(texts)).logits.argmax(dim=1)
    assert guesses.tolist() == list(labels)


@pytest.mark.parametrize("name", heads.__all__)
def test_autocast_keeps_loss_and_norms_wide(name):
    head = model(name).eval()
    inputs = batch(name)
    exact = copy.deepcopy(head).double()(**inputs).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(**inputs).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert abs(loss.item() - exact.item()) < 0.02
    used = [p for p in head.parameters() if p.grad is not None]
    assert len(used) >= len(list(head.parameters())) - 2
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in used)


@pytest.mark.parametrize("name", heads.__all__)
def test_gradient_checkpointing_changes_no_number(name):
    plain, saving = model(name).train(), model(name).train()
    saving.gradient_checkpointing_enable()
    assert saving.is_gradient_checkpointing
    assert not plain.is_gradient_checkpointing
    losses = []
    for head in (plain, saving):  # dropout is on: the mask must come back in the second pass
        torch.manual_seed(3)
        loss = head(**batch(name)).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (key, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad), key
    saving.gradient_checkpointing_disable()
    assert not saving.is_gradient_checkpointing


def test_gradient_checkpointing_computes_layers_twice_and_keeps_less():
    def run(every=None):
        head = model("BertForSequenceClassification").train()
        if every:
            head.activation_checkpointing_enable(every_n_layers=every)
        calls, kept = [], []
        for layer in head.bert.encoder.layer:
            layer.register_forward_pre_hook(lambda *a: calls.append(1))
        saved = torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        )
        with saved:
            loss = head(**batch("BertForSequenceClassification")).loss
        loss.backward()
        return len(calls), sum(kept)

    (once, much), (half, some), (twice, little) = run(), run(2), run(1)
    assert (once, half, twice) == (2, 3, 4)
    assert little < 0.5 * much
    assert little < some < much
    with pytest.raises(ValueError, match="offload"):
        model("BertForMaskedLM").gradient_checkpointing_enable(offload=True)


@pytest.mark.parametrize("name", heads.__all__)
def test_deepcopy_pickle_and_torch_save(name, tmp_path):
    head = model(name).eval()
    inputs = batch(name)
    torch.save(head, tmp_path / "head.pt")
    copies = [
        copy.deepcopy(head),
        pickle.loads(pickle.dumps(head)),
        torch.load(tmp_path / "head.pt", weights_only=False),
    ]
    fresh = model(name, seed=1).eval()
    torch.save(head.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    with torch.no_grad():
        expected = head(**inputs)
        for other in (*copies, fresh):
            for a, b in zip(expected.values(), other(**inputs).values(), strict=True):
                assert torch.equal(a, b)
    with torch.no_grad():  # a copy has weights of its own, and its decoder follows its words
        copies[0].bert.embeddings.word_embeddings.weight.zero_()
        again = head(**inputs)
        for a, b in zip(expected.values(), again.values(), strict=True):
            assert torch.equal(a, b)
        if name == "BertForMaskedLM":
            logits = copies[0](**inputs).logits
            assert torch.equal(logits[inputs["attention_mask"]].std(dim=0), torch.zeros(80))


@pytest.mark.slow
@pytest.mark.parametrize("name", heads.__all__)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole(name, training):
    torch.compiler.reset()
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    head = model(name, num_hidden_layers=1, **rates).train(training)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed in (1, 2):
        inputs = batch(name, seed=seed, S=9 + 2 * seed)
        loss = compiled(**inputs).loss
        plain = head(**inputs).loss
        torch.testing.assert_close(loss, plain)
        grads = [
            torch.autograd.grad(
                x,
                head.classifier.weight
                if hasattr(head, "classifier")
                else head.bert.encoder.layer[0].output.dense.weight,
            )[0]
            for x in (loss, plain)
        ]
        torch.testing.assert_close(*grads)  # fmt: skip


def test_trains_under_trainer(tmp_path):
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = small_tokenizer()
    rows = [
        {**tokenizer(text), "label": label} for text, label in Reviews(tokenizer, count=64).items
    ]
    rates = {"hidden_dropout_prob": 0.0, "initializer_range": 0.1}
    head = model("BertForSequenceClassification", **rates)
    arguments = TrainingArguments(
        tmp_path / "out",
        num_train_epochs=8,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        head,
        arguments,
        train_dataset=rows,
        eval_dataset=rows[:16],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before
    assert after["eval_accuracy"] == 1.0
    head.save_pretrained(tmp_path / "saved")
    again = heads.BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    packed = pack([row["input_ids"] for row in rows])
    with torch.no_grad():
        assert torch.equal(again(packed).logits, head.eval()(packed).logits)


def test_masked_lm_trains_under_trainer_and_saves(tmp_path):
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = small_tokenizer()
    rows = [tokenizer(text) for text, _ in Reviews(tokenizer, count=32).items]
    head = model("BertForMaskedLM")
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    Trainer(head, arguments, train_dataset=rows, data_collator=collator).train()
    assert (tmp_path / "out" / "checkpoint-4" / "model.safetensors").exists()


def test_trains_under_lora(tmp_path):
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    tokenizer = small_tokenizer()
    base = model("BertForSequenceClassification", hidden_dropout_prob=0.0)
    untouched = copy.deepcopy(base)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["qkv", "dense"])
    adapted = get_peft_model(base, config)
    trainable = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in n or "classifier" in n for n in trainable)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=2e-2)
    texts, labels = zip(*Reviews(tokenizer, count=32).items, strict=True)
    padded = tokenizer(list(texts), padding=True, return_tensors="pt")
    adapted.train()
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = adapted(**padded, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    adapted.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(untouched, tmp_path).eval()
    merged = copy.deepcopy(adapted).merge_and_unload()
    with torch.no_grad():
        expected = adapted(**padded).logits
        torch.testing.assert_close(again(**padded).logits, expected)
        torch.testing.assert_close(merged(**padded).logits, expected)
