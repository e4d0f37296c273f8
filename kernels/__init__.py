"""fastbert's Triton kernels, one op family a file: kernels, launchers, and what to compile ahead.

They know tensors and tiles, and no module, config or checkpoint. Letters: T packed tokens, H heads,
D head dim, C hidden, F feed-forward, V vocabulary, M labelled tokens, W work items.
"""
