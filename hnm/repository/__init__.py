"""What dvc.lock, Git and DVC's cache say of the pipeline's stages and outputs."""
