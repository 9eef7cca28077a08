"""One HTML file about one run or several, which needs neither a network nor this library.

Everything that a run folder holds is taken as text that someone else wrote: the template escapes
it, pictures are read only from inside the folder, and the page's own policy forbids any script but
the one of page.js.
"""

from sslzoo.report.page import write
from sslzoo.report.run import ReportError

__all__ = ["ReportError", "write"]
