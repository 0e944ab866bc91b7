"""FastChat's own tokenising and masking of a whole file, up to the tensors its trainer takes.

Two patches, without which it does not run on this tokenizer: `legacy` is set on the fast tokenizer, and conversations
that begin with an answer are left to its own code.
"""

import json
import sys

import transformers
from fastchat.train import train

MODEL, CHATS = sys.argv[1:]

tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL, model_max_length=2048, padding_side="right")
tokenizer.legacy = True
tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
train.local_rank = 1  # anything but 0 keeps it from printing every mismatch
with open(CHATS) as file:
    chats = json.load(file)
data = train.preprocess([chat["conversations"] for chat in chats], tokenizer)
print(len(data["input_ids"]), int((data["labels"] != -100).sum()))
