"""The commands of `realce-train`, a file each, and the options that several share."""
