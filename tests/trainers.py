"""Arguments of `lightning.Trainer` for tests."""

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
"""On a CPU, without a word and without files."""
