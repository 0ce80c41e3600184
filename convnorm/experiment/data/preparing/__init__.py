"""Images of any size and from many kinds of files become one file of bytes, see `data.stored`."""
