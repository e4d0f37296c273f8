"""Warnings that a caller may want to tell apart."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes and were cut.

    Attributes:
        count: how many were cut.
        total: of how many.
        limit: tokens that were kept of each, special ones included.
    """

    def __init__(self, count: int, total: int, limit: int) -> None:
        what = "text is" if count == 1 else "texts are"
        super().__init__(f"{count} {what} longer than {limit} tokens and cut there, of {total}")
        self.count, self.total, self.limit = count, total, limit
