"""A model hub on this machine: the part of the real one's protocol that downloads and uploads need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
# Who may write: the owner of "me" and "org", but not of "other"; hf_read may write nowhere, other tokens are unknown.
WRITER, READER = "Bearer hf_good", "Bearer hf_read"
OWN = ("me", "org")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the state of the server's `hub`."""

    def do_GET(self):
        self.answer_request()

    def do_HEAD(self):
        self.answer_request()

    def do_POST(self):
        self.answer_request()

    def do_PUT(self):
        self.answer_request()

    def answer_request(self):
        hub = self.server.hub
        # Read whatever comes of it: a client that is cut off while it sends sees no answer.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        path = address.path
        self.is_proposal = parse_qs(address.query).get("create_pr") == ["1"]
        hub.requests.append((self.command, path))
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.is_breaking_off:
            return
        if hub.status != 200 or hub.page:
            self.answer(hub.status, hub.page)
        elif self.command in ("POST", "PUT"):
            self.take(path)
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)", path):
            self.tell_kind(*match.groups())
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        else:
            self.answer(404)

    def is_refused(self, repository, revision):
        hub = self.server.hub
        if repository not in hub.repositories:
            self.answer(hub.unknown_status, code="RepoNotFound")
        elif revision not in REVISIONS and (repository, revision) not in hub.pushed:
            self.answer(404, code="RevisionNotFound")
        else:
            return False
        return True

    def tell_kind(self, kind, repository):
        hub = self.server.hub
        if hub.others_status is None:
            return  # the connection breaks off
        if hub.others_status != 200:
            self.answer(hub.others_status)
        elif hub.others.get(repository) == kind or (kind == "models" and repository in hub.repositories):
            self.answer_json({"id": repository, "sha": COMMIT, "siblings": []})
        else:
            self.answer(hub.unknown_status, code="RepoNotFound")

    def describe(self, repository, kind, revision):
        revision = unquote(revision)
        if self.is_refused(repository, revision):
            return
        commit, files = self.server.hub.snapshot(repository, revision)
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            content = {"id": repository, "sha": commit, "siblings": siblings}
        else:
            content = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
        self.answer_json(content)

    def send_file(self, repository, revision, name):
        revision = unquote(revision)
        if self.is_refused(repository, revision):
            return
        hub = self.server.hub
        commit, files = hub.snapshot(repository, revision)
        body = files.get(name)
        if hub.gate_status is not None and self.headers.get("Authorization") != WRITER:
            self.answer(hub.gate_status, code="GatedRepo")
            return
        if body is None:
            self.answer(404, code="EntryNotFound", headers={"X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit}
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        breaks = hub.breaks.get(name, []) if self.command == "GET" else []
        stop = start + breaks.pop(0) if breaks else len(body)
        if self.command == "GET":
            hub.sent.append((name, start, stop - start))
        self.answer(206 if start else 200, body[start:], headers, stop=stop - start)

    def take(self, path):
        hub = self.server.hub
        if self.command == "PUT":
            self.keep_large_file(path.removeprefix("/storage/"))
        elif path == "/api/validate-yaml":
            errors = [{"message": hub.card_error}] if hub.card_error else []
            self.answer_json({"errors": errors, "warnings": []}, status=400 if errors else 200)
        elif self.headers.get("Authorization") not in (WRITER, READER):
            # So does the real hub call what it does not show.
            code = None if path == "/api/repos/create" else "RepoNotFound"
            self.answer_json({"error": "Invalid username or password."}, status=401, code=code)
        elif path == "/api/repos/create":
            self.create(**json.loads(self.body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path):
            repository, kind, revision = match[1], match[2], unquote(match[3])
            if self.is_refused(repository, revision):
                return
            if not self.may_write(repository.split("/")[0]) and not self.is_proposal:
                self.answer_json({"error": "You have no write access"}, status=403)
            else:
                {"preupload": self.tell_modes, "commit": self.commit}[kind](repository, revision)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            hub.batches.append(json.loads(self.body))
            objects = [self.batch(item) for item in hub.batches[-1]["objects"]]
            self.answer_json({"transfer": "basic", "objects": objects})
        else:
            self.answer(404)

    def may_write(self, namespace):
        return self.headers.get("Authorization") == WRITER and namespace in OWN

    def create(self, name, organization=None, **options):
        hub = self.server.hub
        repository = f"{organization or OWN[0]}/{name}"
        address = {"url": f"{hub.endpoint}/{repository}"}
        if not self.may_write(repository.split("/")[0]):
            self.answer_json({"error": f"You don't have the rights to create a model under {organization}"}, status=403)
        elif repository in hub.repositories:
            self.answer_json({"error": "You already created this model repo", **address}, status=409)
        else:
            hub.repositories[repository] = {}
            hub.created.append((repository, options))
            self.answer_json(address)

    def tell_modes(self, repository, revision):
        files = self.server.hub.snapshot(repository, revision)[1]
        modes = []
        for item in json.loads(self.body)["files"]:
            body, is_large = files.get(item["path"]), item["path"].endswith(".safetensors")
            oid = None if body is None else hashlib.sha256(body).hexdigest() if is_large else git_hash(body)
            mode = "lfs" if is_large else "regular"
            modes.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer_json({"files": modes})

    def batch(self, item):
        hub = self.server.hub
        if hub.batch_error is not None:
            return {**item, "error": {"code": 422, "message": hub.batch_error}}
        if item["oid"] in hub.storage:
            return item
        return {**item, "actions": {"upload": {"href": f"{hub.endpoint}/storage/{item['oid']}"}}}

    def keep_large_file(self, oid):
        hub = self.server.hub
        status = hub.storage_statuses.pop(0) if hub.storage_statuses else 200
        if status == 200:
            assert hashlib.sha256(self.body).hexdigest() == oid
            hub.storage[oid] = self.body
        self.answer(status)

    def commit(self, repository, revision):
        hub = self.server.hub
        if hub.commit_error is not None:
            self.answer_json({"error": hub.commit_error}, status=413)
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        added = {}
        for value in (line["value"] for line in lines if line["key"] == "file"):
            added[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            added[value["path"]] = hub.storage[value["oid"]]
        deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
        hub.commits.append((repository, revision, lines[0]["value"]["summary"], sorted(added)))
        commit = f"{len(hub.commits):040x}"
        target = f"refs/pr/{len(hub.commits)}" if self.is_proposal else revision
        before = hub.snapshot(repository, revision)[1]
        snapshot = (commit, {**{name: body for name, body in before.items() if name not in deleted}, **added})
        hub.pushed[repository, target] = hub.pushed[repository, commit] = snapshot
        address = f"{hub.endpoint}/{repository}"
        proposal = f"{address}/discussions/{len(hub.commits)}" if self.is_proposal else None
        addresses = {"commitUrl": f"{address}/commit/{commit}", "pullRequestUrl": proposal}
        self.answer_json({**addresses, "commitOid": commit, "success": True})

    def answer_json(self, content, status=200, code=None):
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"}, code)

    def answer(self, status, body=b"", headers=None, code=None, stop=None):
        """`stop` is where the body breaks off, though all of it was announced."""
        self.send_response(status)
        for name, value in {**(headers or {}), **({"X-Error-Code": code} if code else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])

    def log_message(self, *_):
        pass


def git_hash(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for them


class Hub:
    """A running hub, what it holds, how it misbehaves, and what it was asked for."""

    def __init__(self):
        # What there is: files of "org/name" by their names, pushed commits on top, and what is no model.
        self.repositories, self.pushed, self.storage = {}, {}, {}
        self.others, self.others_status = {}, 200
        # What goes wrong.
        self.status, self.page, self.unknown_status, self.gate_status = 200, b"", 404, None
        self.is_breaking_off = False
        self.breaks = {}  # by file name: after how many bytes each of the next answers ends
        self.batch_error, self.commit_error, self.card_error, self.storage_statuses = None, None, None, []
        # What was asked for, and what was sent: (file, first byte, number of bytes).
        self.requests, self.tokens, self.sent = [], [], []
        self.created, self.batches, self.commits = [], [], []
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def add(self, repository, *files, **contents):
        self.repositories[repository] = {name: name.encode() for name in files} | contents

    def snapshot(self, repository, revision="main"):
        """(commit, files) of a branch, tag or commit."""
        return self.pushed.get((repository, revision)) or (COMMIT, self.repositories[repository])

    def fetched(self):
        """Names of the files that were downloaded, not only asked about."""
        found = [re.fullmatch(r"/.+?/.+?/resolve/[^/]+/(.+)", path) for kind, path in self.requests if kind == "GET"]
        return sorted(match[1] for match in found if match)

    def asked(self):
        found = [re.fullmatch(r"/.+?/.+?/resolve/[^/]+/(.+)", path) for _, path in self.requests]
        return {match[1] for match in found if match}
