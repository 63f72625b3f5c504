"""What happens along the way of training, a file each."""
