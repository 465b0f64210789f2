"""The same losses as trl's own code gives on the same numbers, with gradients. Skipped by name where trl is not installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.training.signals import losses
from herd.training.signals.divergences import divergence, grouped

trl = pytest.importorskip("trl", reason="trl is not installed: losses are compared with the papers' formulas only")
pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

TORCH = torch.Generator().manual_seed(11)
P, T = 4, 9


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=TORCH, dtype=torch.float64) * scale


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Equal losses and equal gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [each.requires_grad_() for each in tensors]


class Anything:
    """Stands in for the parts of a trainer that only gather and log: every method gives back what it is given."""

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return Anything()

    def __call__(self, value: Any = None, *_: Any, **__: Any) -> Any:
        return value


def trainer(**values: Any) -> Any:
    """What the loss of a trainer reads of the trainer."""
    common = {
        "accelerator": Anything(device="cpu", num_processes=1, sync_gradients=True),
        "args": Anything(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "_metrics": {"train": _Lists()},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return Anything(**{**common, **values})


def test_cpo_and_simpo_with_label_smoothing() -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    chosen, rejected = leaves(-draw(P).abs(), -draw(P).abs())
    for kind, gamma in (("simpo", 0.4), ("sigmoid", 0.0)):
        stub = trainer(loss_type=kind, beta=1.7, simpo_gamma=gamma, label_smoothing=0.1, alpha=0.0)
        theirs, *_ = CPOTrainer.cpo_loss(stub, chosen, rejected)
        same(losses.simpo(chosen, rejected, 1.7, gamma, 0.1).mean(), theirs.mean(), chosen, rejected)


def test_orpo() -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    chosen, rejected = leaves(-draw(P).abs().float() - 0.01, -draw(P).abs().float() - 0.01)
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), chosen, rejected)
    ours = 0.3 * losses.orpo(chosen, rejected).mean()
    torch.testing.assert_close(ours, -theirs.mean())
    for one, other in zip(
        torch.autograd.grad(ours, [chosen, rejected]), torch.autograd.grad(-theirs.mean(), [chosen, rejected]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("over", "kind"), [("answers", "grpo"), ("tokens", "bnpo"), ("tokens", "dapo"), ("constant", "dr_grpo")])
@pytest.mark.parametrize(("low", "high", "beta"), [(0.2, 0.2, 0.0), (0.2, 0.28, 0.04)])
def test_grpo_and_its_variants(over: str, kind: str, low: float, high: float, beta: float) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    (logprobs,) = leaves(-draw(P, T).abs())
    old, reference = logprobs.detach() + draw(P, T, scale=0.3), logprobs.detach() + draw(P, T, scale=0.5)
    lengths = torch.tensor([9, 4, 6, 1])
    mask = (torch.arange(T)[None] < lengths[:, None]).long()
    gains = losses.advantages(torch.tensor([[1.0, 0.0, 0.0, 2.0]], dtype=torch.float64))[0]
    stub = _grpo_stub(logprobs, kind, low, high, beta)
    ids = torch.zeros(P, T, dtype=torch.long)
    inputs = {"prompt_ids": ids[:, :2], "prompt_mask": ids[:, :2] + 1, "completion_ids": ids, "completion_mask": mask}
    inputs |= {"advantages": gains, "old_per_token_logps": old, "ref_per_token_logps": reference, "num_items_in_batch": mask.sum()}
    theirs = GRPOTrainer._compute_loss(stub, None, inputs)

    rows = mask.bool()
    document = torch.arange(P)[:, None].expand(P, T)[rows]
    values = losses.clipped_gain(logprobs[rows], old[rows], gains[document], low, high) + beta * losses.k3(logprobs[rows], reference[rows])
    weights = losses.token_weights(lengths, over, longest=T).to(values.dtype)
    same((values * weights[document]).sum(), theirs, logprobs)


def _grpo_stub(logprobs: Tensor, kind: str, low: float, high: float, beta: float) -> Any:
    return trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(P, T), None),
        loss_type=kind,
        epsilon_low=low,
        epsilon_high=high,
        beta=beta,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        _entropy_bonus_enabled=False,
    )


class _Lists(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        self[key] = []
        return self[key]


def test_kto() -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    policy, mismatched = leaves(-draw(P, T).abs(), -draw(P).abs() * 5)
    reference, mismatched_reference = -draw(P, T).abs(), -draw(P).abs() * 5 - 3
    label = torch.tensor([True, False, False, True])
    stub = trainer(
        model=_Model(policy, training=True),
        ref_model=_Model(reference, training=False),
        _compute_kl_logps=lambda model, _: mismatched if model.training else mismatched_reference,
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    ids = torch.ones(P, T + 1, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids, "label": label}
    theirs = KTOTrainer._compute_loss(stub, stub.model, batch, False)
    kl = losses.kto_kl(mismatched - mismatched_reference)
    ours = losses.kto(policy.sum(1) - reference.sum(1), label, kl, 0.2, 1.5, 0.5).mean()
    same(ours, theirs, policy)


@pytest.mark.parametrize("kind", ["sigmoid", "sft"])
def test_dpo_and_its_nll_term(kind: str) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    (policy,) = leaves(-draw(2 * P, T).abs())
    reference = -draw(2 * P, T).abs()
    stub = trainer(
        model=_Model(policy, training=True),
        ref_model=_Model(reference, training=False),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=0.2,
        use_weighting=False,
    )
    ids = torch.ones(2 * P, T + 1, dtype=torch.long)
    theirs = DPOTrainer._compute_loss(stub, stub.model, {"input_ids": ids, "attention_mask": ids, "completion_mask": ids}, False)
    ratios = policy.sum(1) - reference.sum(1)
    nll = losses.dpo_nll(policy[:P].sum(1), torch.full((P,), T))
    ours = losses.dpo(ratios[:P], ratios[P:], 0.2) if kind == "sigmoid" else nll
    same(ours.mean(), theirs, policy)


class _Model(torch.nn.Module):
    """Answers with log-probabilities that are given, as a model with a fused head does."""

    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor, training: bool) -> None:
        super().__init__()
        self.logprobs, self.training = logprobs, training

    def forward(self, **_: Any) -> Any:
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)


@pytest.mark.parametrize(("name", "beta"), [("forward", 0.0), ("reverse", 1.0), ("js", 0.3)])
def test_distillation_over_the_whole_vocabulary(name: str, beta: float) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    teacher = draw(1, 5, 20, scale=2)
    (student,) = leaves(draw(1, 5, 20, scale=2))
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, torch.zeros(1, 5), beta=beta, temperature=1.5)
    ids = torch.arange(20).expand(5, 20)
    p, q = grouped(teacher[0], ids, 1.5), grouped(student[0], ids, 1.5)
    same(divergence(name, p, q, beta).mean(), theirs, student)


def test_reward_models() -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    (rewards,) = leaves(draw(2 * P))
    margin = torch.tensor([0.0, 0.5, 1.0, 0.2], dtype=torch.float64)
    stub = trainer(model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=0.01))
    inputs = {"attention_mask": torch.ones(2 * P, 3), "margin": margin}
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=rewards[:, None]), inputs)
    same(losses.bradley_terry(rewards[:P], rewards[P:], margin, 0.01).mean(), theirs, rewards)
