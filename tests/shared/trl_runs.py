"""Arguments of TRL's trainers for three plain steps."""

RATE, BETA = 0.5, 0.4
COMMON = dict(
    max_steps=3,
    learning_rate=RATE,
    optim="sgd",
    lr_scheduler_type="constant",
    max_grad_norm=0.0,
    logging_steps=1,
    save_strategy="no",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    bf16=False,
    dataloader_pin_memory=False,
    beta=BETA,
)
