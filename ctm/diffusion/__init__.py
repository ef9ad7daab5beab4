"""CTM-controlled diffusion: a thought about a noisy input guides every step of its denoising."""
