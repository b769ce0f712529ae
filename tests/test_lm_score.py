"""Scores of responses, against their definitions on each sequence alone."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny import FAMILIES, on_smollm2, tiny, tiny_rows
from transformers import AutoConfig, AutoModelForCausalLM

from lmdyn import jacobian_norm_sq, squeeze_line
from lmdyn.lm import load, load_probes
from lmdyn.lm.data import as_probes
from lmdyn.lm.score import STATS, score
from lmdyn.lm.tokens import Format, encode
from lmdyn.lm.ways import ways

NORMS = ("jacobian_norm_sq", "residual_norm_sq")


@torch.no_grad()
def one_by_one(model, tokenizer, rows):
    """Every statistic from the model's own logits of each sequence, by its definition."""
    probes = as_probes(rows)
    found = {name: np.full((len(rows), len(probes.types)), np.nan) for name in (*STATS, *NORMS)}
    for i, row in enumerate(encode(tokenizer, probes)):
        for name, ids in row.responses.items():
            logits = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
            logits = logits.double()  # torch's float32 log_softmax is biased over a vocabulary
            logp, y = logits.log_softmax(-1), torch.tensor(ids)
            p, at = logp.exp(), (i, probes.types.index(name))
            gap = p - torch.nn.functional.one_hot(y, p.shape[1])
            values = {
                "logp": logp.gather(1, y[:, None]).sum(),
                "argmax_logp": logp.max(1).values.sum(),
                "prob_sq": p.square().sum(1).mean(),
                "label_prob": p.gather(1, y[:, None]).mean(),
                "entropy": -(p * logp).sum(1).mean(),
                "squeeze": squeeze_line(p, y).mean(),
                "prob_norm": p.norm(dim=1).mean(),
                "residual_norm": gap.norm(dim=1).mean(),
                "jacobian_norm_sq": jacobian_norm_sq(logits).mean(),
                "residual_norm_sq": gap.square().sum(1).mean(),
            }
            for stat, value in values.items():
                found[stat][at] = float(value)
    return found


def check(scores, expected, atol):
    for stat, values in expected.items():
        np.testing.assert_allclose(getattr(scores, stat), values, 0, atol, err_msg=stat)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_sequence_at_a_time(family):
    model, tokenizer = tiny(family)
    expected = one_by_one(model, tokenizer, tiny_rows())
    for tokens in (1, 40, 4096):  # every response alone, …, everything in one batch
        scores = score(model, tokenizer, tiny_rows(), tokens=tokens)
        assert scores.logp.dtype == np.float64
        assert scores.vocab_size == model.config.vocab_size
        check(scores, expected, 1e-9)


def test_missing_types_are_nan_and_means_leave_them_out():
    model, tokenizer = tiny("llama")
    rows = tiny_rows()
    scores = score(model, tokenizer, rows)
    missing = np.array([[name not in row for name in scores.types] for row in rows])
    for stat in (*STATS, "n_tokens", *NORMS):
        assert np.array_equal(np.isnan(getattr(scores, stat)), missing), stat
    column = scores.logp[:, scores.types.index("irr_train")]
    assert scores.mean("irr_train") == pytest.approx(np.nanmean(column))
    assert scores.mean("argmax") == pytest.approx(scores.argmax_logp[:, 0].mean())
    assert scores.mean("chosen", "entropy") == pytest.approx(scores.entropy[:, 0].mean())
    lengths = [len(row["chosen"].split()) + 1 for row in rows]  # and EOS
    assert scores.n_tokens[:, 0].tolist() == lengths
    with pytest.raises(ValueError, match="unknown response type 'choosen': did you mean 'chosen'"):
        scores.mean("choosen")
    with pytest.raises(ValueError, match="unknown statistic 'entropie': did you mean 'entropy'"):
        scores.mean("chosen", "entropie")
    alone = score(model, tokenizer, as_probes(rows)[3:4])
    assert math.isnan(alone.mean("irr_train"))
    with pytest.raises(ValueError, match="no row has a response of type irr_train"):
        score(model, tokenizer, as_probes(rows).only("irr_train")[3:4])


def test_without_stats_the_log_probs_are_the_same():
    model, tokenizer = tiny("qwen2")
    full, short = (score(model, tokenizer, tiny_rows(), stats) for stats in (True, False))
    for stat in ("logp", "argmax_logp", "n_tokens"):
        np.testing.assert_array_equal(getattr(full, stat), getattr(short, stat))
    assert short.prob_sq is None
    with pytest.raises(ValueError, match="score with stats=True"):
        short.mean("chosen", "squeeze")


@pytest.mark.parametrize("stats", [True, False])
def test_tokens_add_up_to_the_response(stats):
    model, tokenizer = tiny("gpt2")
    rows = tiny_rows()
    scores = score(model, tokenizer, rows, stats, per_token=True, tokens=40)
    for i, row in enumerate(rows):
        assert scores.tokens[i].keys() == row.keys() - {"prompt"}
        for name, token in scores.tokens[i].items():
            assert tokenizer.decode(token.ids).strip() == row[name].strip() + " <eos>"
            assert (token.logp <= token.argmax_logp).all()
            for k, stat in enumerate(STATS if stats else STATS[:2]):
                values, whole = getattr(token, stat), getattr(scores, stat)
                of_response = values.sum() if k < 2 else values.mean()
                assert of_response == pytest.approx(whole[i, scores.types.index(name)])
    assert score(model, tokenizer, rows).tokens is None


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
def test_statistics_of_half_precision_models_are_those_of_float32(dtype, atol):
    """The model rounds; given its logits, the statistics are as good as float32 allows."""
    model, tokenizer = tiny("llama", dtype)
    scores = score(model, tokenizer, tiny_rows(), tokens=1)
    check(scores, one_by_one(model, tokenizer, tiny_rows()), 1e-4)
    exact = score(model.float(), tokenizer, tiny_rows())
    for stat in ("prob_sq", "label_prob", "entropy", "squeeze"):
        np.testing.assert_allclose(getattr(scores, stat), getattr(exact, stat), 0, atol * 3)
    per_token = (scores.logp - exact.logp) / exact.n_tokens
    assert np.nanmax(abs(per_token)) < atol


def test_the_model_is_left_as_it_was():
    model, tokenizer = tiny("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
    expected = score(model, tokenizer, tiny_rows())
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: p.clone() for name, p in model.state_dict().items()}
    random = torch.get_rng_state()
    scores = score(model, tokenizer, tiny_rows())
    np.testing.assert_array_equal(scores.logp, expected.logp)  # no dropout, and deterministic
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    with pytest.raises(ValueError, match="longer than the 128 tokens"):
        score(model, tokenizer, [{"prompt": "what " * 120, "chosen": "is " * 12}])
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def another(kind, **options):
    torch.manual_seed(0)
    shape = {"vocab_size": 120, "hidden_size": 32, "initializer_range": 0.2}
    config = AutoConfig.for_model(kind, **shape, num_hidden_layers=2, **options)
    return AutoModelForCausalLM.from_config(config).eval()


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
WINDOWED = {"kind": "mistral", **HEADS, "sliding_window": 10}  # a given mask would replace it
CAPPED = {"kind": "gemma2", **HEADS, "head_dim": 8, "final_logit_softcapping": 2.0}
ALIBI = {"kind": "bloom", "n_head": 4}  # distances come from the place in the row, not position ids


@pytest.mark.parametrize("options", [ALIBI, WINDOWED, CAPPED], ids=lambda options: options["kind"])
def test_architectures_that_need_care_are_scored_as_they_are(options):
    model, (_, tokenizer), is_capped = another(**options), tiny("llama"), options is CAPPED
    rows = encode(tokenizer, as_probes(tiny_rows()))
    with nullcontext() if is_capped else pytest.warns(UserWarning, match="are not shared, which"):
        found = ways(model, rows)
    assert found.shared is is_capped
    assert (found.head is None) is is_capped
    expected = one_by_one(model, tokenizer, tiny_rows())
    with warnings.catch_warnings(action="ignore"):
        check(score(model, tokenizer, tiny_rows()), expected, 1e-4)
    if is_capped:
        with pytest.raises(ValueError, match="Gemma2ForCausalLM does more to its logits"):
            found.required_head(model)


def test_a_window_does_not_matter_within_its_length():
    model, (_, tokenizer) = another(**WINDOWED), tiny("llama")
    rows = [{"prompt": "what is", "chosen": " the water", "rejected": " no"}]
    assert ways(model, encode(tokenizer, as_probes(rows))).shared
    check(score(model, tokenizer, rows), one_by_one(model, tokenizer, rows), 1e-4)


def test_bad_input_is_named():
    model, tokenizer = tiny("gpt2")
    rows = [tiny_rows()[0], {"prompt": "what " * 100, "chosen": "no", "rejected": "water " * 40}]
    probes = as_probes(rows, format=Format("paper", max_length=200, max_prompt=150))
    long = (
        r"rows\[1\]: the prompt \(100 tokens\) and 'rejected' \(41\) are longer than the 128 tokens"
    )
    with pytest.raises(ValueError, match=f"{long} that .* pass a format with max_length=128"):
        score(model, tokenizer, probes)
    fits = as_probes([{"prompt": "what " * 100, "chosen": "water " * 28}])
    assert score(model, tokenizer, fits).n_tokens.item() == 29  # the last is only predicted
    small, _ = tiny("gpt2", vocab_size=50)
    with pytest.raises(ValueError, match=r"rows\[0\], 'chosen': token \d+ is not among .* 50: use"):
        score(small, tokenizer, tiny_rows())
    with pytest.raises(ValueError, match="no response, such as 'chosen'"):
        score(model, tokenizer, [{"prompt": "what"}])


def test_predictions_that_are_not_finite_name_their_row():
    model, tokenizer = tiny("llama", torch.float32)
    word = tokenizer.convert_tokens_to_ids("over")  # only in the prompt of rows[2]
    with torch.no_grad():
        model.set_input_embeddings(
            torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.clone())
        )
        model.get_input_embeddings().weight[word] = math.nan
    with pytest.raises(ValueError, match=r"predictions are not finite for rows\[2\] 'chosen': its"):
        score(model, tokenizer, tiny_rows())
    score(model, tokenizer, tiny_rows()[:2])


def test_only_long_work_shows_a_bar(capfd):
    model, tokenizer = tiny("llama")
    score(model, tokenizer, tiny_rows())
    assert capfd.readouterr() == ("", "")
    score(model, tokenizer, tiny_rows(), progress=True)
    assert "18/18" in capfd.readouterr().err


def test_a_row_of_an_empty_prompt_without_a_response_is_nan():
    rows = as_probes([{"prompt": "what", "chosen": " is it"}, {"prompt": "", "rejected": " no"}])
    found = score(*tiny("llama"), rows.only("chosen")).logp
    assert np.isnan(found).tolist() == [[False], [True]]


@on_smollm2
def test_smollm2_equals_one_sequence_at_a_time():
    model, tokenizer = load("smollm2-135m", device="cpu")
    rows = load_probes("sample", ["chosen", "rejected", "irr_train", "random_permute"], limit=2)
    scores = score(model, tokenizer, rows)
    expected = one_by_one(model, tokenizer, rows)
    check(scores, {stat: expected[stat] for stat in ("logp", "argmax_logp")}, 1e-3)
    check(scores, {s: expected[s] for s in ("prob_sq", "label_prob", "entropy", "squeeze")}, 5e-5)
    assert -6 < scores.logp[0, 0] / scores.n_tokens[0, 0] < -1  # it speaks English
