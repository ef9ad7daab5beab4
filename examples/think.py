"""Watch the shipped model think about one handwritten digit, then ask for nothing but the answers of several."""

from pathlib import Path

import numpy as np
from PIL import Image

from serving.client import Answer, Client, Tick

digits = Path(__file__).parent / "digits"
names = ["7-easy.png", "4-hard-like-9.png", "5-hard-like-3.png"]
images = np.stack([np.asarray(Image.open(digits / name), np.float32)[None] / 255 for name in names])  # [3, 1, 28, 28]

with Client("127.0.0.1:50051") as client:
    with client.think("mnist", {"image": images[:1]}, top_k=1) as thinking:  # leaving the block cancels
        for event in thinking:
            match event:
                case Tick():
                    print(f"tick {event.tick}: {event.top[0].label}, certainty {event.certainty:.2f}")
                case Answer():
                    print(f"{event.label}, {event.stop_reason.name} after {event.ticks_used} ticks")

    for name, answer in zip(names, client.answer("mnist", {"image": images}, threshold=0.9).answers, strict=True):
        print(f"{name}: {answer.label} after {answer.ticks_used} ticks, certainty {answer.certainty:.2f}")
