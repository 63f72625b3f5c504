"""Safe reading and writing of files: names, content and text from files are not trusted."""
