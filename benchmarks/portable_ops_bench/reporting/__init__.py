"""What is read: what follows from results, the renderers of a report, and the commands that compare and advise."""
