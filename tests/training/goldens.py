"""Make `goldens.json` and the folders `peft/*`: what TRL, PEFT, schedulefree and galore-torch compute.

Run with an environment that has them (they are not needed by the tests): PYTHONPATH=. python tests/training/goldens.py
Made with torch 2.13.0, transformers 5.23.0, trl 1.16.0, peft 0.21.2, schedulefree 1.4.1, galore-torch 1.0.
"""

import json
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
G = torch.Generator().manual_seed(0)
B, T, V = 3, 6, 11


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G)


def preferences() -> dict[str, Any]:
    """DPO, hinge, IPO and ORPO on given logits, with the gradient at the logits."""
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import selective_log_softmax

    logits, reference = drawn(2 * B, T, V).requires_grad_(), drawn(2 * B, T, V)
    ids = torch.randint(V, (2 * B, T + 1), generator=G)
    mask = torch.ones(2 * B, T + 1, dtype=torch.long)
    mask[:, :2] = 0
    mask[1, 5:] = mask[3, 4:] = 0
    keep = mask[:, 1:]
    found: dict[str, Any] = {"logits": logits.tolist(), "reference": reference.tolist(), "ids": ids.tolist()}
    found["mask"] = keep.tolist()
    sums = (selective_log_softmax(reference, ids[:, 1:]) * keep).sum(1)
    for kind in ("sigmoid", "hinge", "ipo"):
        stub = MagicMock()
        stub.ld_alpha, stub.precompute_ref_logps, stub.f_divergence_type = None, True, "reverse_kl"
        stub.beta, stub.loss_types, stub.loss_weights = 0.3, [kind], [1.0]
        stub.accelerator.gather_for_metrics.side_effect = stub.accelerator.gather.side_effect = lambda value: value
        stub.use_weighting, stub.aux_loss_enabled = False, False
        logps = selective_log_softmax(logits, ids[:, 1:]) * keep
        zeros = torch.zeros_like(logps)
        outputs = types.SimpleNamespace(
            log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )
        inputs = {
            "input_ids": ids, "completion_mask": mask, "attention_mask": mask,
            "ref_chosen_logps": sums[:B], "ref_rejected_logps": sums[B:],
        }  # fmt: skip
        loss = DPOTrainer._compute_loss(stub, MagicMock(return_value=outputs), inputs, False)
        slope = torch.autograd.grad(loss, logits)[0]
        found[kind] = {"loss": float(loss.detach()), "slope": slope.tolist()}
    labels = ids.masked_fill(mask == 0, -100)
    padded = torch.cat([logits, torch.zeros(2 * B, 1, V)], 1)
    means = ORPOTrainer.get_batch_logps(padded, labels, average_log_prob=True)
    stub = MagicMock()
    stub.beta, stub.accelerator.device = 1.0, torch.device("cpu")
    losses = -ORPOTrainer.odds_ratio_loss(stub, means[:B], means[B:])[0]
    found["orpo"] = {"losses": losses.tolist(), "slope": torch.autograd.grad(losses.mean(), logits)[0].tolist()}
    return found


def grpo() -> dict[str, Any]:
    """GRPO on given log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    logps, old, reference = (-drawn(4, 5).abs() for _ in range(3))
    logps.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    gains = drawn(4)
    stub = MagicMock()
    stub._get_per_token_logps_and_entropies.return_value = (logps, torch.zeros(4, 5), None)
    stub.accelerator.gather.side_effect = stub.accelerator.gather_for_metrics.side_effect = lambda value: value
    stub.top_entropy_quantile, stub.off_policy_mask_threshold = 1.0, None
    stub.importance_sampling_level, stub.beta, stub.loss_type = "token", 0.1, "grpo"
    stub.epsilon_low = stub.epsilon_high = 0.2
    stub.args.delta, stub.args.use_bias_correction_kl, stub.use_vllm = None, False, False
    stub.aux_loss_enabled, stub._entropy_bonus_enabled, stub.current_gradient_accumulation_steps = False, False, 1
    stub.model.training = True
    ids = torch.zeros(4, 5, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask, "advantages": gains,
        "old_per_token_logps": old, "ref_per_token_logps": reference,
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(stub, MagicMock(), inputs)
    slope = torch.autograd.grad(loss, logps)[0]
    held = {"logps": logps, "old": old, "reference": reference, "mask": mask, "gains": gains, "slope": slope}
    return {"loss": float(loss.detach()), **{key: value.tolist() for key, value in held.items()}}


def distillation() -> dict[str, Any]:
    """The generalized divergence of GKD."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = drawn(2, 4, V), drawn(2, 4, V)
    found: dict[str, Any] = {"student": student.tolist(), "teacher": teacher.tolist()}
    for beta in (0.0, 0.3, 1.0):
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=1.7, reduction="none")
        found[str(beta)] = loss.sum(-1).tolist()
    return found


def optimizers() -> dict[str, Any]:
    """Ten steps of schedule-free and GaLore on a quadratic."""
    from galore_torch import GaLoreAdamW
    from schedulefree import AdamWScheduleFree

    start, target = drawn(4, 6), drawn(4, 6)
    found: dict[str, Any] = {"start": start.tolist(), "target": target.tolist()}
    p = torch.nn.Parameter(start.clone())
    optimizer = AdamWScheduleFree([p], lr=0.05, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=0)
    optimizer.train()
    for _ in range(10):
        p.grad = (p - target).detach()
        optimizer.step()
    found["schedule_free_y"] = p.tolist()
    optimizer.eval()
    found["schedule_free_x"] = p.tolist()
    p = torch.nn.Parameter(start.clone())
    group = {"params": [p], "rank": 2, "update_proj_gap": 100, "scale": 0.25, "proj_type": "std"}
    optimizer = GaLoreAdamW([group], lr=0.05, betas=(0.9, 0.99), eps=1e-8, no_deprecation_warning=True)
    for _ in range(10):
        p.grad = (p - target).detach()
        optimizer.step()
    found["galore"] = p.tolist()
    return found


def peft() -> None:
    """Adapters with random numbers, written by PEFT, and its logits."""
    from peft import IA3Config, LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    import kobza

    kinds = {
        "lora": ("llama", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])),
        "dora": ("llama", LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["v_proj", "up_proj"])),
        "lora_gpt2": ("gpt2", LoraConfig(r=2, lora_alpha=4, use_rslora=True, target_modules=["c_attn"])),
        "ia3": (
            "phi", IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"])
        ),
    }  # fmt: skip
    ids = torch.arange(12)[None] * 7
    for name, (family, config) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            kobza.open(f"tiny:{family}").save(Path(folder, "base"))
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(Path(folder, "base"))), config).eval()
            torch.manual_seed(1)
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if p.requires_grad:
                        noise = torch.randn(p.shape)
                        p.copy_(p + 0.2 * noise if "magnitude" in key or "ia3" in key else 0.2 * noise)
                logits = model(input_ids=ids).logits
            model.peft_config["default"].base_model_name_or_path = f"tiny:{family}"
            model.save_pretrained(HERE / "peft" / name)
        (HERE / "peft" / name / "README.md").unlink(missing_ok=True)
        save_file({"ids": ids, "logits": logits.contiguous()}, HERE / "peft" / name / "seen.safetensors")


if __name__ == "__main__":
    peft()
    whole = {"preferences": preferences(), "grpo": grpo(), "distil": distillation(), "optimizers": optimizers()}
    (HERE / "goldens.json").write_text(json.dumps(whole) + "\n")
