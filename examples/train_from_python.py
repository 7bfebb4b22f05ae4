"""Trains DMT on generated data from plain Python and prints the loss of each ability; about half a minute on a CPU."""

from lightning.pytorch import Callback, Trainer

from sftlab import DMT, CodeData, GeneralData, MathData, Metrics, MixtureData, SFTModule


class PrintLosses(Callback):
    """The loss of each ability at the end of each stage."""

    def on_stage_end(self, trainer, module, stage) -> None:
        """Print them."""
        found = trainer.callback_metrics.items()
        print(stage.stage.name, {key: round(float(v), 3) for key, v in found if key.startswith("train/loss/")})


def main() -> None:
    """Train."""
    abilities = {"math": MathData(num_examples=64), "code": CodeData(num_examples=64),
                 "general": GeneralData(num_examples=64)}  # fmt: skip
    data = MixtureData(abilities, template="vicuna_short", max_length=256, batch={"rows": 4}, seed=1)
    model = SFTModule(config={"vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 2}, tokenizer="lab-base",
                      learning_rate=1e-3)  # fmt: skip
    callbacks = [PrintLosses(), Metrics(every_n_steps=1), DMT(k=0.25, epochs=1)]
    Trainer(accelerator="cpu", devices=1, callbacks=callbacks, enable_progress_bar=False, logger=False).fit(
        model, datamodule=data
    )


if __name__ == "__main__":
    main()
