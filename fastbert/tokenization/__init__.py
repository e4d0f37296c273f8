"""The parts of `BertTokenizer`: settings, files, options of a call, cutting, padding, results."""
