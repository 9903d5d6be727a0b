"""Tasks merged into a bundle each, or switched live on one base: what either costs here, before training."""
