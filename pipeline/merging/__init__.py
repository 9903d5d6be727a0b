"""The parts of the merge: what each tensor becomes, its sum, its proof, and the files."""
