"""Names of materials, shapes and splits; their order defines the integer labels and the seeds."""

MATERIAL_NAMES = ("felt", "wood", "stone", "steel")
SHAPE_NAMES = ("circle", "square", "triangle")
SPLITS = ("train", "validation", "test", "shifted")
