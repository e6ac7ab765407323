"""What a run says of images: metrics, regions and their names, tables, maps, and a summary."""
