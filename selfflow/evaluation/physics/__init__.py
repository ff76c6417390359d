"""A verifier of Collisions clips that needs no human: bodies tracked from pixels, held against physics and sound."""
