"""Plans three strategies over the same data and prints what each would train: no model, a second or two."""

from sftlab import DMT, CodeData, GeneralData, MathData, MixtureData, MultiTask, Sequential, SFTModule, ledger


def main() -> None:
    """Compile each schedule and print its ledger."""
    for schedule in (MultiTask(epochs=3), Sequential(epochs=3), DMT(k=1 / 16, epochs=3)):
        abilities = {"math": MathData(num_examples=200), "code": CodeData(num_examples=100),
                     "general": GeneralData(num_examples=150)}  # fmt: skip
        data = MixtureData(abilities, template="vicuna_short", max_length=256, batch={"examples": 16})
        plan = schedule.compile(data, SFTModule(path="lab-base"))
        print(f"{type(schedule).__name__}: {plan.num_steps} steps")
        for row in ledger(plan):
            numbers = f"{row.examples:6,} examples {row.supervised_tokens:8,} tokens trained"
            print(f"  {row.stage:12} {row.ability:8} {numbers}")


if __name__ == "__main__":
    main()
