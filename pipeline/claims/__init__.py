"""What the reference guide says of LoRA, beside what is computed and measured here."""
