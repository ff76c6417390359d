"""The physics verifier of Collisions: scores generated clips by tracked bodies and audio, without a reference."""
