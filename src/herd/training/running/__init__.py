"""What runs a recipe: the loop, its folder, its optimisers, its processes."""
