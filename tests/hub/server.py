"""A small Hub on loopback: the endpoints that huggingface_hub calls, and a real store of what was committed."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READ_TOKEN = "hf_WriteTokenOfATest", "hf_ReadTokenOfATest"


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """Commits are whole states (name -> bytes); branches point at them."""

    def __init__(self, private):
        self.private, self.commits, self.branches, self.tags = private, {}, {}, {}
        self.history = {"main": []}
        self.lfs = set()  # digests that were uploaded as large files
        self.put("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")

    def put(self, branch, files, title):
        parents = self.history[branch]
        listing = json.dumps([title, len(parents), {name: git_sha1(data) for name, data in sorted(files.items())}])
        oid = hashlib.sha1(f"{branch}{listing}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.history[branch] = [*parents, (oid, title)]
        return oid

    def branch(self, name, start):
        self.branches[name] = oid = self.resolve(start)
        past = next(past for past in self.history.values() if oid in [one for one, _ in past])
        self.history[name] = past[: [one for one, _ in past].index(oid) + 1]

    def resolve(self, revision):
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def files(self, revision="main"):
        return self.commits[self.resolve(revision)]


class Hub:
    """`repos` by name, `requests` as (method, path, token, seconds since the start); what goes wrong is set in between.

    `failing` is a list of [pattern of "METHOD path", answers left, status]; `delay` seconds pass before every answer.
    """

    def __init__(self):
        self.repos, self.objects, self.requests, self.failing, self.delay = {}, {}, [], [], 0.0
        self.roles = {TOKEN: "write", READ_TOKEN: "read"}
        self.forbidden = False
        self.lost = None  # pattern of a request that is done, but whose answer does not come
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle_any(self):
                hub.serve(self)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def calls(self, pattern):
        return [one for one in self.requests if re.search(pattern, f"{one[0]} {one[1]}")]

    def environment(self, token=TOKEN):
        """Of a process that talks to this Hub and to no other."""
        known = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        known |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**known, "HF_TOKEN": token}

    # ---- one request ----

    def serve(self, request):
        body = _body(request)
        parts = urlsplit(request.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        name = f"{request.command} {path}"
        with self.lock:
            self.requests.append((request.command, path, token, time.monotonic()))
            broken = next((entry for entry in self.failing if entry[1] > 0 and re.search(entry[0], name)), None)
            if broken is not None:
                broken[1] -= 1
        time.sleep(self.delay)
        if broken is not None:
            return _answer(request, broken[2], {"error": f"told to fail, and here is your {token}"})
        with self.lock:
            status, content, headers = self.route(request, path, query, token, body)
        if self.lost and re.search(self.lost, name):
            self.lost = None
            request.close_connection = True
            return request.connection.close()
        return _answer(request, status, content, headers)

    def route(self, request, path, query, token, body):
        method = request.command
        if path.startswith("/upload/"):  # a signed address: no token may go there
            assert token is None and query["signature"] == ["signed"]
            return self.take_object(path.removeprefix("/upload/"), body)
        if token is not None and token not in self.roles:
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/whoami-v2":
            role = self.roles.get(token)
            return (
                (200, {"type": "user", "name": "ada", "auth": {"accessToken": {"role": role}}}, {}) if role else DENIED
            )
        if method == "POST" and (self.forbidden or self.roles.get(token) != "write"):
            return 403, {"error": f"Forbidden: you must use a write token, not {token}"}, {}
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                repo = self.repos.get(found.group("repo"))
                if repo is None or (repo.private and token is None):
                    return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                return answer(self, repo, found, query, body)
        return 404, {"error": f"no such page {path}"}, {}

    def validate(self, content):
        import yaml

        head = re.match(r"---\n(.*?)\n---\n", content, re.S)
        known = yaml.safe_load(head.group(1)) if head else None
        if not isinstance(known, dict) or not re.fullmatch(r"[a-z0-9.-]+", known.get("license", "unknown")):
            return 400, {"errors": [{"message": '"license" must be one of ...'}]}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def create(self, asked):
        name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}, {}
        self.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, {"url": f"{self.url}/{name}", "name": name}, {}

    def take_object(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not that content"}, {}
        self.objects[oid] = body
        return 200, b"", {}

    # ---- one repository ----

    def info(self, repo, found, query, body):
        oid = repo.resolve(found.groupdict().get("rev") or "main")
        if oid is None:
            return NO_REVISION
        siblings = [{"rfilename": name} for name in repo.commits[oid]]
        return 200, {"id": found["repo"], "private": repo.private, "sha": oid, "siblings": siblings, "tags": []}, {}

    def refs(self, repo, found, query, body):
        def listed(kind, refs):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return 200, {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}, {}

    def history(self, repo, found, query, body):
        past = repo.history.get(found["rev"], [])
        dated = [
            {"id": oid, "title": t, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            for oid, t in past
        ]
        return 200, dated[::-1], {}

    def tree(self, repo, found, query, body):
        oid = repo.resolve(found["rev"])
        if oid is None:
            return NO_REVISION
        return 200, [self.entry(repo, name, data) for name, data in repo.commits[oid].items()], {}

    def entry(self, repo, name, data):
        listed = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
        digest = hashlib.sha256(data).hexdigest()
        if digest in repo.lfs:
            listed |= {"oid": git_sha1(digest.encode()), "lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
        return listed

    def preupload(self, repo, found, query, body):
        oid = repo.resolve(found["rev"])
        if oid is None:
            return NO_REVISION
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
            listed = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in repo.commits[oid]:
                stored = self.entry(repo, file["path"], repo.commits[oid][file["path"]])
                listed["oid"] = stored.get("lfs", stored)["oid"]
            files.append(listed)
        return 200, {"files": files}, {}

    def batch(self, repo, found, query, body):
        answers = []
        for wanted in json.loads(body)["objects"]:
            action = {"href": f"{self.url}/upload/{wanted['oid']}?signature=signed"}
            known = wanted["oid"] in self.objects
            answers.append({**wanted} if known else {**wanted, "actions": {"upload": action}})
        return 200, {"transfer": "basic", "objects": answers}, {}

    def commit(self, repo, found, query, body):
        files, title = dict(repo.files(found["rev"])), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.lfs.add(value["oid"])
                files[value["path"]] = self.objects[value["oid"]]
            elif files.pop(value["path"], None) is None:
                return 404, {"error": "A file with this name doesn't exist"}, {"X-Error-Code": "EntryNotFound"}
        oid = repo.put(found["rev"], files, title)
        return 200, {"commitUrl": f"{self.url}/{found['repo']}/commit/{oid}", "commitOid": oid, "success": True}, {}

    def branch(self, repo, found, query, body):
        if found["name"] in repo.branches:
            return 409, {"error": "Reference already exists"}, {}
        repo.branch(found["name"], json.loads(body or b"{}").get("startingPoint", "main"))
        return 200, {}, {}

    def resolve(self, repo, found, query, body):
        oid = repo.resolve(found["rev"])
        if oid is None:
            return NO_REVISION
        data = repo.commits[oid].get(found["file"])
        if data is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
        return 200, data, {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": oid}


DENIED = (401, {"error": "Invalid username or password."}, {})
NO_REVISION = (404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
ID = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (rf"GET /api/models/{ID}(?:/revision/(?P<rev>.+))?", Hub.info),
    (rf"GET /api/models/{ID}/refs", Hub.refs),
    (rf"GET /api/models/{ID}/commits/(?P<rev>.+)", Hub.history),
    (rf"GET /api/models/{ID}/tree/(?P<rev>[^/]+)/?", Hub.tree),
    (rf"POST /api/models/{ID}/preupload/(?P<rev>.+)", Hub.preupload),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", Hub.batch),
    (rf"POST /api/models/{ID}/commit/(?P<rev>.+)", Hub.commit),
    (rf"POST /api/models/{ID}/branch/(?P<name>.+)", Hub.branch),
    (rf"(?:GET|HEAD) /{ID}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", Hub.resolve),
]


def _body(request):
    if "chunked" in (request.headers.get("Transfer-Encoding") or ""):
        pieces = []
        while size := int(request.rfile.readline(), 16):
            pieces.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(pieces)
    return request.rfile.read(int(request.headers.get("Content-Length") or 0))


def _answer(request, status, content, headers=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        request.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
    except (BrokenPipeError, ConnectionResetError):
        pass
