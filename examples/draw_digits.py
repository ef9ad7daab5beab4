"""Watch the shipped model draw one seven out of noise, then ask for nothing but all ten digits, as a PNG file."""

import numpy as np
from PIL import Image

from serving.client import Answer, Client

with Client("127.0.0.1:50051") as client:
    with client.sample("digits-diffusion", 7, seed=1) as drawing:  # leaving the block cancels
        for event in drawing:
            match event:
                case Answer():  # one for each reverse step; event.outputs["image"] is what it left
                    guided = "abstained" if event.abstained else f"certainty {event.certainty:.2f}"
                    print(f"step {event.link + 1}: {event.ticks_used} ticks, {guided}")

    with client.sample("digits-diffusion", range(10), seed=1, images_every=0) as drawing:
        images = drawing.result().images  # [10, H, W] in [-1, 1]
    pixels = (np.clip((np.hstack(list(images)) + 1) / 2, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels.repeat(8, axis=0).repeat(8, axis=1)).save("digits.png")
    print("digits.png: 0 to 9")
