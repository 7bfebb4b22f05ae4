"""MixtureData: several abilities and the policy that mixes them, as one LightningDataModule."""

from __future__ import annotations

from sftlab.data.ability import AbilityData, PlannedData
from sftlab.files import checked_name
from sftlab.plan.policy import MixturePolicy, Proportional


class MixtureData(PlannedData):
    """Abilities and how they are mixed.

    Args:
        abilities: The data of each ability, under the name that schedules call it by.
        policy: How a stage's abilities become one stream, unless the stage says otherwise.
        template: vicuna_v1.1, vicuna_short, chatml, alpaca, or tokenizer (the tokenizer's own chat template).
        max_length: Tokens in a packed row, and the most that an example may have.
        overlong: What happens to longer conversations: split (on turn pairs), truncate or drop.
        batch: What an optimizer step holds over all ranks: {examples: 128} conversations or {rows: 64}.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        seed: Chooses subsets and orders examples; None takes seed_everything's.
        packing: Examples share rows; false gives each a row of its own, for architectures that cannot keep them apart.

    Raises:
        ValueError: No abilities, or an option has no such value.
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
    ) -> None:
        super().__init__(template, max_length, overlong, batch, num_workers, seed, packing)
        if not abilities:
            raise ValueError("data.abilities: name at least one ability")
        for name, ability in abilities.items():
            ability.name = checked_name("data.abilities", name)
        self._abilities, self.policy = dict(abilities), policy

    @property
    def abilities(self) -> dict[str, AbilityData]:
        """By name."""
        return self._abilities
