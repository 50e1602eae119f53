"""First-letter absorption: words and prompts, probes of the letter, and what latents make of it."""
