"""What texts teach before anyone has labelled them."""
