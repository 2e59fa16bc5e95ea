"""Speed side by side with what people use instead: the rows of the command `ratios`."""
