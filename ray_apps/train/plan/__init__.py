"""`vicuna train plan`: what a run will take, found out from the model's config before a GPU is rented."""
