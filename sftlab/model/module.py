"""SFTModule: a causal LM trained on the batches of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule

from sftlab.bounds import within
from sftlab.data.feed import Batch, share_of_rows
from sftlab.data.seed import global_seed
from sftlab.model import loading, parallel
from sftlab.model.adapter import LiveAdapter, LoRA
from sftlab.model.arguments import check_computing, check_from_scratch, check_optimizer, check_rate
from sftlab.model.attention import attentions_to_try
from sftlab.model.backbone import build_backbone, content_hash, empty_model, is_random, load_config, load_tokenizer
from sftlab.model.compiled import compilable, compile_layers
from sftlab.model.freeze import freeze
from sftlab.model.isolation import use_isolating_attention
from sftlab.model.loss import Normalisation, SupervisedLoss, example_weights
from sftlab.model.noise import Noise
from sftlab.model.optim import BETAS, build_optimizer, chosen_optimizer, learning_rate_at
from sftlab.model.recompute import Recompute, recompute
from sftlab.plan.plan import Plan, StagePlan
from sftlab.plan.pool import seed_from
from sftlab.plan.rate import Cosine, LRSchedule
from sftlab.plan.stage import Stage
from sftlab.screen import show

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_NONE_YET = object()


class SFTModule(LightningModule):
    """Causal-LM fine-tuning of any Hugging Face model on one device, DDP or FSDP2.

    Args:
        path: Model folder or hub id, ``owner/name[@revision]``; lab:small, lab:base and lab:large are the bases that
            ship with the package; lab-small, lab-base and lab-large are LLaMAs with random weights.
        config: LlamaConfig arguments of a model with random weights, instead of ``path``.
        tokenizer: Folder or hub id of the tokenizer; by default the model's own.
        learning_rate: Peak learning rate of each stage.
        warmup_ratio: Fraction of each stage's steps that warm up.
        warmup_steps: Number of warm-up steps of each stage, instead of ``warmup_ratio``.
        lr_schedule: Learning-rate schedule after the warm-up: Cosine (the default), Linear, Constant, WSD, or a class
            of your own.
        optimizer: A class of torch.optim, AdamW8bit, AdamWScheduleFree, Muon, or class_path and init_args; AdamW by
            default.
        weight_decay: Weight decay of the optimizer, on matrices only.
        betas: Betas of the default AdamW.
        frozen: Patterns of names of weights that are not trained: model.embed_tokens, model.layers.[0-3], *.bias.
        neftune_alpha: Scale of NEFTune's noise on the embeddings during training; 0 adds none.
        label_smoothing: Fraction of each target that is spread over the vocabulary during training; train/loss remains
            the negative log likelihood.
        normalise: What has equal weight in the loss of an optimizer step: token, example or ability.
        attention: auto (the fastest that is exact for this architecture), per_document (CPU), sdpa, flash_attention_2,
            flex_attention or eager.
        activation_checkpointing: What the backward pass recomputes: nothing (false), whole layers (true: least memory,
            about a third more time), or all but matrix products and attention (selective: in between).
        chunk_tokens: Number of supervised tokens whose logits are held at once; None holds those of a micro-batch.
        compile: Compile each layer by torch.compile: faster steps after a minute or so of compiling.
        trust_remote_code: Whether to run the Python code of a hub model.
        adapter: Train low-rank weights beside frozen ones; None trains all weights.

    Raises:
        ValueError: An option has an invalid value.
    """

    def __init__(
        self,
        path: str | None = "lab-base",
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        learning_rate: float = 2e-5,
        warmup_ratio: float = 0.03,
        warmup_steps: int | None = None,
        lr_schedule: LRSchedule | None = None,
        optimizer: dict[str, Any] | str | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = BETAS,
        frozen: list[str] | None = None,
        neftune_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        normalise: Normalisation = "token",
        attention: str = "auto",
        activation_checkpointing: Recompute = False,
        chunk_tokens: int | None = None,
        trust_remote_code: bool = False,
        adapter: LoRA | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_computing(attention, activation_checkpointing, compile, chunk_tokens)
        if config is not None:
            check_from_scratch(path, tokenizer)
        check_rate(learning_rate, warmup_ratio, warmup_steps)
        check_optimizer(optimizer, weight_decay, betas)
        within("model.neftune_alpha", neftune_alpha, 0, 1e6)
        within("model.label_smoothing", label_smoothing, 0, 1)
        self.path, self.config, self.tokenizer_path = path, config, tokenizer or path
        self.learning_rate, self.warmup_ratio, self.warmup_steps = learning_rate, warmup_ratio, warmup_steps
        self.frozen, self.neftune_alpha, self.label_smoothing = frozen or [], neftune_alpha, label_smoothing
        self.lr_schedule = lr_schedule or Cosine()
        self.optimizer = chosen_optimizer("model.optimizer", optimizer)
        self.weight_decay, self.betas, self.normalise = weight_decay, betas, normalise
        self.attention, self.chunk_tokens, self.is_compiled = attention, chunk_tokens, compile
        self.activation_checkpointing, self.trust_remote_code = activation_checkpointing, trust_remote_code
        self.adapter, self.live_adapter = adapter, cast(LiveAdapter | None, None)
        if adapter is not None:
            self.strict_loading = False  # the base's weights are not in checkpoints; see on_load_checkpoint
        self.net: SupervisedLoss | None = None
        self._plan: Plan | None = None
        self.optimizer_in_use: Any = _NONE_YET
        self.val_abilities: list[str] = []
        self.val_losses: dict[str, float] = {}  # of the last validation, over all ranks

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, loaded once. Needs no weights."""
        assert self.tokenizer_path is not None
        return load_tokenizer(self.tokenizer_path, self.trust_remote_code)

    def load_config(self) -> PretrainedConfig:
        """The configuration of the architecture. Needs no weights."""
        return load_config(self.path, self.config, self.trust_remote_code)

    @property
    def backbone(self) -> PreTrainedModel:
        """The Hugging Face model."""
        assert self.net is not None, "the model exists once configure_model has run"
        return self.net.model

    def follow(self, plan: Plan, val_abilities: Sequence[str]) -> None:
        """Train by this plan, which provides the loss denominators and the learning rate.

        Args:
            plan: Queried step by step, so that it may grow.
            val_abilities: The abilities of the validation loaders, in their order.
        """
        self._plan, self.val_abilities = plan, list(val_abilities)
        if self.adapter is not None:
            self.adapter.check([planned.stage.name for planned in plan.stages])

    def configure_model(self) -> None:
        """Build the model on this process; shard it if the strategy has a device mesh."""
        if self.net is not None:
            return
        attention = None if self.attention == "auto" else self.attention
        dtype = torch.bfloat16 if self._trainer is not None and self.trainer.precision == "bf16-true" else torch.float32
        quantise = self.adapter.quantise if self.adapter is not None else None
        is_sharded = self.device_mesh is not None
        if is_sharded and self.is_compiled and cast(Any, self.trainer.strategy).tensor_parallel_size > 1:
            raise ValueError("model.compile: not tried with tensor_parallel_size; leave one of them out")
        shell = None
        if is_sharded and not quantise and not is_random(self.path, self.config):
            shell = loading.shell(cast(str, self.path), attention, dtype, self.trust_remote_code)
        if shell is not None:
            model = shell[0]
        else:
            model = build_backbone(self.path, self.config, attention, dtype, self.trust_remote_code, quantise)
        if self.adapter is not None:
            self.live_adapter = self._adapted(model, self.adapter)
        freeze(model, self.frozen)
        recompute(model, self.activation_checkpointing)
        net = SupervisedLoss(model, self.chunk_tokens)
        if is_sharded:
            parallel.divide(model, self.trainer.strategy, self.adapter)
            in_bf16 = parallel.gathers_in_bf16(self.trainer.precision_plugin, model)
            strategy = cast(parallel.FSDP2Strategy, self.trainer.strategy)
            blocks = parallel.decoder_layers(model)
            parallel.shard(net, blocks, strategy.shard_mesh, in_bf16, strategy.cpu_offload)
        if shell is not None:
            strategy = cast(parallel.FSDP2Strategy, self.trainer.strategy)
            loading.fill(net, shell[1], strategy.root_device, strategy.cpu_offload)
            if self.live_adapter is not None:
                self.live_adapter.start("")
        self.net = net

    def _adapted(self, model: PreTrainedModel, adapter: LoRA) -> LiveAdapter:
        is_drawn = is_random(self.path, self.config)
        base = "" if is_drawn else content_hash(self.path, self.config, self.trust_remote_code)
        if adapter.quantise and self.device_mesh is not None:
            raise ValueError(
                "model.adapter.quantise: weights in 4 bits are not sharded; use strategy: ddp or one device"
            )
        return LiveAdapter(adapter, model, parallel.decoder_layers(model), global_seed(), base)

    def begin_stage(self, before: StagePlan | None, stage: StagePlan) -> bool:
        """Prepare the first step of a stage; return whether it trains other weights than the previous stage."""
        return self.live_adapter is not None and self.live_adapter.begin_stage(before, stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which optimizer the state belongs to; leave out the base's weights if an adapter does not change them."""
        checkpoint["optimizer"] = None if self.optimizer_in_use is _NONE_YET else self.optimizer_in_use
        if (live := self.live_adapter) is not None:
            kept = {k: v for k, v in checkpoint["state_dict"].items() if live.is_kept(k)}
            checkpoint["state_dict"], checkpoint["adapter"] = kept, live.note()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore which optimizer is in use and whether the base has changed.

        Raises:
            ValueError: Weights of the adapter are missing, or the weights are those of another model.
        """
        if "state_dict" in checkpoint:
            self.check_weights(checkpoint["state_dict"])
        self.optimizer_in_use = checkpoint.get("optimizer")
        if (live := self.live_adapter) is None:
            return
        live.is_base_changed = bool(checkpoint["adapter"]["is_base_changed"])
        if "state_dict" in checkpoint:  # for shards, the strategy has already checked
            missing = [k for k in self.state_dict() if live.is_kept(k) and k not in checkpoint["state_dict"]]
            if missing:
                raise ValueError(f"ckpt_path: the checkpoint lacks weights of the adapter: {missing[0]}")

    def check_weights(self, held: Mapping[str, torch.Tensor]) -> None:
        """Check the weights of a checkpoint before they are loaded.

        Raises:
            ValueError: They belong to another model.
        """
        own = {name: tuple(weight.shape) for name, weight in self.state_dict().items()}
        there = {name: tuple(weight.shape) for name, weight in held.items()}
        apart = sorted(own.keys() ^ there.keys()) if self.strict_loading else []
        for name in [*(name for name in own if name in there and own[name] != there[name]), *apart]:
            raise ValueError(
                f"ckpt_path: the checkpoint holds another model: {name} is {there.get(name, 'not there')} in it and "
                f"{own.get(name, 'not there')} here. Resume with the model that the run began with"
            )

    def on_fit_start(self) -> None:
        """Check on this model that packed examples do not influence each other; ``auto`` chooses an attention this way.

        Raises:
            ValueError: No attention keeps them apart.
        """
        assert self.net is not None
        names = attentions_to_try(self.device) if self.attention == "auto" else [self.attention]
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.is_compiled:
            names = compilable(names)
            compile_layers(self.net, parallel.decoder_layers(self.net.model), self.device)
            if self.trainer.is_global_zero:
                show("Compiling the layers: the first steps take a minute or so longer")
        use_isolating_attention(self.net, names, data.max_length, data.packing, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute a micro-batch's part of the step's loss, and its negative log likelihoods by ability (``nll_A``)."""
        plan = self._plan
        assert self.net is not None and plan is not None
        counts = (plan.supervised_A, plan.examples_A)
        supervised_A, examples_A = (torch.from_numpy(count(batch.step, batch.step + 1)) for count in counts)
        weights_A = torch.from_numpy(plan.loss_weights_A(batch.step))
        weight_D = example_weights(batch, self.normalise, supervised_A, examples_A, weights_A)
        loss, nll_K = self.net(batch, weight_D, self._noise(plan, batch), self.label_smoothing)
        ability_K = batch.ability_D[batch.example_K]
        real_K = (batch.supervised_D > 0)[batch.example_K]
        nll_A = torch.zeros(len(plan.abilities), device=nll_K.device)
        nll_A.index_add_(0, ability_K, torch.where(real_K, nll_K, 0.0).to(nll_A.dtype))
        # Lightning divides by the micro-batches of a step and averages over ranks; the weights already cover both.
        num_shares = share_of_rows(self.trainer)[1]
        return {"loss": loss * (self.trainer.accumulate_grad_batches * num_shares), "nll_A": nll_A}

    def _noise(self, plan: Plan, batch: Batch) -> Noise | None:
        if not self.neftune_alpha:
            return None
        uids = ["" if number < 0 else plan.uids_N[number] for number in batch.number_D]
        return Noise(self.neftune_alpha, [seed_from("neftune", global_seed(), uid, batch.step) for uid in uids])

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one validation micro-batch to its ability's mean loss per supervised token."""
        assert self.net is not None
        _, nll_K = self.net(batch, torch.zeros(len(batch.lengths_D), device=self.device))
        real_K = (batch.supervised_D > 0)[batch.example_K]
        self._val_loss[self.val_abilities[dataloader_idx]].update(nll_K[real_K].double())

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        from torchmetrics import MeanMetric

        self._val_loss = {
            name: MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(self.device)
            for name in self.val_abilities
        }

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all ranks."""
        for name, mean in self._val_loss.items():
            loss = self.val_losses[name] = float(mean.compute())
            # Lightning would log it one step early; callbacks that monitor it still find it in the usual place.
            self.log(f"val/loss/{name}", loss, logger=False)
            for logger in self.loggers if not self.trainer.sanity_checking else ():
                logger.log_metrics({f"val/loss/{name}": loss}, step=self.global_step)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of an optimizer step of the plan."""
        assert self._plan is not None
        warmup = (self.warmup_ratio, self.warmup_steps)
        return learning_rate_at(self._plan, step, self.learning_rate, warmup, self.lr_schedule)

    def optimizer_of(self, stage: Stage) -> dict[str, Any] | None:
        """Return the optimizer of a stage as class_path and init_args; None for the default AdamW.

        Raises:
            ValueError: The stage names no valid optimizer.
        """
        if stage.optimizer is None:
            return self.optimizer
        return chosen_optimizer(f"stage {stage.name!r}: optimizer", stage.optimizer)

    def configure_optimizers(self) -> Any:
        """Build the optimizer of the current stage, and a scheduler that follows the plan's learning rate."""
        plan = self._plan
        assert plan is not None, "a StageSchedule callback compiles the plan before the optimizer is made"
        choice = self.optimizer_in_use
        if choice is _NONE_YET:
            choice = self.optimizer_of(plan.stages[0].stage)
        optimizer = self._build_optimizer(choice)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def use_optimizer(self, strategy: Strategy, choice: dict[str, Any] | None, step: int) -> None:
        """Replace the optimizer by a new one with empty state.

        Args:
            strategy: The trainer's strategy.
            choice: As returned by ``optimizer_of``.
            step: The next optimizer step.
        """
        optimizer = self._build_optimizer(choice)
        for group in optimizer.param_groups:
            group["initial_lr"], group["lr"] = group["lr"], self.learning_rate_at(step)
        strategy.optimizers = [optimizer]
        for config in strategy.lr_scheduler_configs:
            scheduler = cast(torch.optim.lr_scheduler.LambdaLR, config.scheduler)
            scheduler.optimizer = optimizer
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            scheduler.lr_lambdas = [self.learning_rate_at for _ in optimizer.param_groups]

    def check(self, stages: Sequence[Stage]) -> None:
        """Check this model against the stages of a schedule before any weight is loaded.

        Raises:
            ValueError: A stage's optimizer is invalid, or a pattern of ``frozen`` matches nothing.
        """
        for stage in stages:
            self.optimizer_of(stage)
        if self.frozen:
            freeze(empty_model(self.load_config()), self.frozen)

    def _build_optimizer(self, choice: dict[str, Any] | None) -> torch.optim.Optimizer:
        self.optimizer_in_use = choice
        return build_optimizer(self, choice, self.weight_decay, self.betas)
