"""What a model is trained for: tasks as passes, contrastive and generative losses, what one step adds up to."""
