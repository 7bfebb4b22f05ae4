"""MixtureData: several abilities and the policy that mixes them, as one LightningDataModule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftlab.data.ability import AbilityData, PlannedData
from sftlab.data.cluster import prepared_on
from sftlab.files import checked_name
from sftlab.plan.policy import MixturePolicy, Proportional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class MixtureData(PlannedData):
    """The data of several abilities and the policy that mixes them.

    Args:
        abilities: The data of each ability, by the name that schedules use.
        policy: How the abilities of a stage are mixed, unless the stage has a policy of its own.
        template: vicuna_v1.1, vicuna_short, chatml, alpaca, or tokenizer (the tokenizer's own chat template).
        max_length: Tokens in a packed row, and the most that an example may have.
        overlong: What to do with longer conversations: split (between exchanges), truncate or drop.
        batch: Size of an optimizer step over all ranks: {examples: 128} conversations or {rows: 64}.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        seed: Selects subsets and orders examples; None uses that of seed_everything.
        packing: Whether examples share rows; false gives each a row of its own, for architectures that mix them up.
        ray_address: A Ray cluster (auto, host:6379, ray://host:10001) whose nodes prepare the examples; by default this
            machine does.

    Raises:
        ValueError: There are no abilities, or an option has an invalid value.
    """

    def __init__(
        self,
        abilities: dict[str, AbilityData],
        policy: MixturePolicy = Proportional(),  # noqa: B008 - it has no state
        template: str = "vicuna_v1.1",
        max_length: int = 2048,
        overlong: str = "split",
        batch: dict[str, int] = {"examples": 128},  # noqa: B006 - never changed
        num_workers: int = 0,
        seed: int | None = None,
        packing: bool = True,
        ray_address: str = "",
    ) -> None:
        super().__init__(template, max_length, overlong, batch, num_workers, seed, packing)
        if not abilities:
            raise ValueError("data.abilities: name at least one ability")
        for name, ability in abilities.items():
            ability.name = checked_name("data.abilities", name)
        self._abilities, self.policy, self.ray_address = dict(abilities), policy, ray_address

    @property
    def abilities(self) -> dict[str, AbilityData]:
        """The data of each ability, by name."""
        return self._abilities

    def load(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Render and tokenise the examples of every ability, or find them in the cache."""
        with prepared_on(self.ray_address, "data.ray_address"):
            super().load(tokenizer)
