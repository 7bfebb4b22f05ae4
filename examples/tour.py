"""A tour from plain Python: train, read results as data frames, plot, use the model; half a minute on a CPU."""

import sftlab
from sftlab import DMT, CodeData, GeneralData, MathData, MixtureData, ScoreAbilities, SFTModule

SMALL = {
    "data.abilities.math.num_examples": 64,
    "data.abilities.code.num_examples": 64,
    "data.abilities.general.num_examples": 64,
    "schedule.epochs": 1,
    "trainer.callbacks": [{"class_path": "ScoreAbilities", "init_args": {"num_problems": 10}}],
}


def main() -> None:
    """Train twice, from a config and from objects, and look at both."""
    # A config that comes with sftlab, with changes; a file of your own or a mapping does as well.
    changes = {**SMALL, "schedule.k": 0.25, "data.abilities.general.val_fraction": 0.2}
    run = sftlab.fit("sftlab:dmt", changes, run="tour")
    print(run)
    print(run.ledger[["stage", "ability", "examples", "supervised_tokens"]].to_string(index=False))
    scores = run.scores.query("headline")  # the other rows tell kinds of problems apart
    print(scores[["stage", "ability", "value", "low", "high"]].to_string(index=False))
    print(run.losses.round(3))
    print(run.metrics.filter(like="train/loss").dropna(how="all").tail(1).round(3).to_string())
    run.plot_loss().figure.savefig("loss.png")

    # The model after any stage, with the template that it was trained with.
    model, tokenizer = run.model("specialised"), run.tokenizer("specialised")
    question = [{"role": "user", "content": "What is 2 + 3?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    print("answer:", tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    # The same from objects of one's own; Lightning's Trainer(callbacks=[DMT(...)]).fit(...) trains them too.
    abilities = {"math": MathData(num_examples=64), "code": CodeData(num_examples=64),
                 "general": GeneralData(num_examples=64)}  # fmt: skip
    data = MixtureData(abilities, template="vicuna_short", max_length=256, batch={"examples": 16}, seed=1)
    model = SFTModule("lab:base", learning_rate=3e-3)
    trainer = {"accelerator": "cpu", "callbacks": [ScoreAbilities(num_problems=10)]}
    other = sftlab.fit(data=data, schedule=DMT(k=0, epochs=1), model=model, trainer=trainer, run="objects")
    print(other, "as", sftlab.Run("lightning_logs/objects"))


if __name__ == "__main__":
    main()
