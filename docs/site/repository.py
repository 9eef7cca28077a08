"""Pages of docs/ link to files outside it; here such files become part of the site.

A hook of MkDocs. In the repository a link like ../benchmarks/results/x.json is read as it stands.
In the site the file lies under repository/, at the same path, and the link goes there: Markdown
files (the derivations beside the ops) become pages with links of their own, folders a list of
their files, all others are copied.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.structure.files import File

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
INSIDE = "repository"


def on_files(files, config):
    """Add every file outside docs/ that a page names, and those that these name in turn."""
    docs, root = folders(config)
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for target in targets(page.read_text(), page, root):
            uri = uri_of(target, docs, root)
            if uri.startswith(INSIDE) and files.get_file_from_path(uri) is None:
                files.append(copied(config, uri, target, root))
                pages += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files outside docs/, as they lie in the site."""
    docs, root = folders(config)
    start = os.path.dirname(page.file.src_uri)
    source = root / page.file.src_uri.removeprefix(INSIDE + "/")
    if not page.file.src_uri.startswith(INSIDE):
        source = docs / page.file.src_uri

    def moved(match):
        target = target_of(match[2], source, root)
        if target is None:
            return match[0]
        anchor = urlsplit(match[2]).fragment
        link = os.path.relpath(uri_of(target, docs, root), start or ".")
        return match[1] + link + f"#{anchor}" * bool(anchor) + match[3]

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(moved, text) for text in parts[::2]]  # not what is written as code
    return "".join(parts)


def folders(config):
    """The folder of the pages, and that of the repository."""
    docs = Path(config["docs_dir"]).resolve()
    return docs, docs.parent


def targets(text, page, root):
    """The files and folders of the repository that a page links to, with what these hold."""
    found = (target_of(link, page, root) for _, link, _ in LINK.findall(CODE.sub("", text)))
    for target in filter(None, found):
        yield target
        if target.is_dir() and target != root:
            yield from held(target)


def held(folder):
    """The files of a folder."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def target_of(link, page, root):
    """The file or folder that a relative link names, or None."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None
    target = Path(os.path.normpath(page.parent / parts.path))
    return target if target.is_relative_to(root) and target.exists() else None


def uri_of(target, docs, root):
    """Where a file of the repository lies in the site."""
    if target.is_relative_to(docs):
        uri = target.relative_to(docs).as_posix()
    else:
        uri = f"{INSIDE}/{target.relative_to(root).as_posix()}"
    return f"{uri}/index.md" if target.is_dir() else uri


def copied(config, uri, target, root):
    """A File of MkDocs from a file outside docs/, or from a folder's list of files."""
    if target.is_dir():
        listed = "\n".join(f"- [{path.name}]({path.name})" for path in held(target))
        title = target.relative_to(root).as_posix()
        return File.generated(config, uri, content=f"# {title}\n\n{listed}\n")
    return File.generated(config, uri, abs_src_path=str(target))
