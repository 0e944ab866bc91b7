"""FastChat's own trainer for a few steps, each timed; the last line of the output is what was measured, as JSON.

    train.py MODEL CHATS ROWS_PER_STEP STEPS

The arguments are those of its README with a row per pass, on the CPU. Two patches, without which it does not run on
this tokenizer: `legacy` is set on the fast tokenizer, and only rank 0 prints mismatches, which this is made not to be.
"""

import json
import resource
import sys
import time

import transformers
from fastchat.train import train

MODEL, CHATS, ROWS, STEPS = sys.argv[1:]

ARGUMENTS = {
    "model_name_or_path": MODEL,
    "data_path": CHATS,
    "output_dir": "fastchat-run",
    "bf16": True,
    "use_cpu": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": ROWS,
    "max_steps": STEPS,
    "learning_rate": 2e-5,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "save_strategy": "no",
    "report_to": "none",
}


class Timed(transformers.TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        """See the base."""
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """See the base."""
        self.seconds.append(time.perf_counter() - self.started)


class MeasuredTrainer(transformers.Trainer):
    """Ends the process after training, before anything is saved."""

    def train(self, *args, **kwargs):
        """See the base."""
        timed = Timed()
        self.add_callback(timed)
        super().train(*args, **kwargs)
        masks = self.train_dataset.attention_mask
        measured = {
            "seconds": timed.seconds,
            "tokens_per_row": float(masks.sum() / len(masks)),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(measured))
        sys.exit()


transformers.PreTrainedTokenizerFast.legacy = True
train.rank0_print = lambda *args: None
train.Trainer = MeasuredTrainer
sys.argv[1:] = [word for name, value in ARGUMENTS.items() for word in (f"--{name}", str(value))]
train.train()
