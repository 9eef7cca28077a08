"""The images that a run skipped, by name: on the screen, in the metrics and in unreadable.txt."""

from sslzoo.run_folder import writing


class UnreadableLog:
    """Writes down what was found unreadable since the last time.

    Args:
        setup: sslzoo.training.Setup. Each process writes down what it met itself.
    """

    def __init__(self, setup):
        self.setup, self.written = setup, set()

    def update(self, row):
        """Name what is new; the count goes into the row of metrics, unless it is 0."""
        unreadable = getattr(self.setup.data, "unreadable", None)
        found = unreadable.found if unreadable else {}
        new = {index: what for index, what in found.items() if index not in self.written}
        if new:
            self.written |= set(new)
            for index, what in new.items():
                self.setup.report.warn(f"skipped image {index}: {what}")
            path = self.setup.run.path / "unreadable.txt"
            with writing(path), path.open("a") as file:
                file.writelines(f"{index}\t{what}\n" for index, what in new.items())
        if found:
            row["unreadable_images"] = len(found)
