"""A small Hub on loopback: the endpoints that huggingface_hub calls, and a real store of what was committed."""

import base64
import contextlib
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


class Refused(Exception):
    """Status, content and headers of an answer that is no success."""


def not_found(what):
    return Refused(404, {"error": f"{what} not found"}, {"X-Error-Code": f"{what}NotFound"})


class Repo:
    """Commits are whole states (name -> bytes); a branch is the list of its commits."""

    def __init__(self, private):
        self.private, self.commits, self.history = private, {}, {"main": []}
        self.lfs = set()  # digests that were uploaded as large files
        self.put("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def put(self, branch, files):
        past = self.history[branch]
        listing = json.dumps([branch, len(past), {name: git_sha1(data) for name, data in sorted(files.items())}])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid], self.history[branch] = files, [*past, oid]
        return oid

    @property
    def branches(self):
        return {name: past[-1] for name, past in self.history.items()}

    def resolve(self, revision):
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise not_found("Revision")
        return oid

    def files(self, revision="main"):
        return self.commits[self.resolve(revision)]

    def entry(self, name, data):
        listed = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.lfs:
            listed |= {"oid": git_sha1(digest.encode()), "lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
        return listed


class Hub:
    """`repos` by name, `requests` as (method, path, token, seconds since the start); what goes wrong is set in between.

    `failing` is a list of [pattern of "METHOD path", answers left, status]; `delay` seconds pass before every answer.
    """

    def __init__(self):
        self.repos, self.objects, self.requests, self.failing, self.delay = {}, {}, [], [], 0.0
        self.roles = {TOKEN: "write", READ_TOKEN: "read"}
        self.lost = None  # pattern of a request that is done, but whose answer does not come
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            do_GET = do_POST = do_PUT = do_HEAD = lambda self: hub.serve(self)

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
            try:
                answer = 200, *self.route(request.command, path, query, token, body)
            except Refused as refused:
                answer = refused.args
        if self.lost and re.search(self.lost, name):
            self.lost = None
            request.close_connection = True
            return request.connection.close()
        return _answer(request, *answer)

    def route(self, method, path, query, token, body):
        """Content and headers of a success."""
        if path.startswith("/upload/"):  # a signed address: no token may go there
            assert token is None and query["signature"] == ["signed"]
            oid = path.removeprefix("/upload/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.objects[oid] = body
            return b"", {}
        if token is not None and token not in self.roles:
            raise Refused(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            if token is None:
                raise Refused(401, {"error": "Invalid username or password."})
            return {"type": "user", "name": "ada", "auth": {"accessToken": {"role": self.roles[token]}}}, {}
        if method == "POST" and self.roles.get(token) != "write":
            raise Refused(403, {"error": f"Forbidden: you must use a write token, not {token}"})
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body)), {}
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                repo = self.repos.get(found["repo"])
                if repo is None or (repo.private and token is None):
                    raise not_found("Repo")
                content = answer(self, repo, found, body)
                return content if isinstance(content, tuple) else (content, {})
        raise Refused(404, {"error": f"no such page {path}"})

    def create(self, asked):
        owner = asked.get("organization") or "ada"
        name = f"{owner}/{asked['name']}"
        if owner != "ada":
            raise Refused(403, {"error": f"Forbidden: you may not write to {owner}"})
        if name in self.repos:
            raise Refused(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        self.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{self.url}/{name}", "name": name}

    # ---- one repository ----

    def info(self, repo, found, body):
        oid = repo.resolve(found.groupdict().get("rev") or "main")
        return {"id": found["repo"], "private": repo.private, "sha": oid, "siblings": [], "tags": []}

    def refs(self, repo, found, body):
        heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
        return {"branches": heads, "tags": [], "converts": []}

    def commits(self, repo, found, body):
        about = {"title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
        return [{"id": oid, **about} for oid in reversed(repo.history[found["rev"]])]

    def tree(self, repo, found, body):
        return [repo.entry(name, data) for name, data in repo.files(found["rev"]).items()]

    def preupload(self, repo, found, body):
        there, files = repo.files(found["rev"]), []
        for name in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if name.endswith((".safetensors", ".png")) else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False})
            if name in there:
                stored = repo.entry(name, there[name])
                files[-1]["oid"] = stored.get("lfs", stored)["oid"]
        return {"files": files}

    def batch(self, repo, found, body):
        answers = json.loads(body)["objects"]
        for wanted in answers:
            if wanted["oid"] not in self.objects:
                wanted["actions"] = {"upload": {"href": f"{self.url}/upload/{wanted['oid']}?signature=signed"}}
        return {"transfer": "basic", "objects": answers}

    def commit(self, repo, found, body):
        files = dict(repo.files(found["rev"]))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.lfs.add(value["oid"])
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise not_found("Entry")
        oid = repo.put(found["rev"], files)
        return {"commitUrl": f"{self.url}/{found['repo']}/commit/{oid}", "commitOid": oid, "success": True}

    def branch(self, repo, found, body):
        if found["name"] in repo.history:
            raise Refused(409, {"error": "Reference already exists"})
        oid = repo.resolve(json.loads(body or b"{}").get("startingPoint", "main"))
        past = next(past for past in repo.history.values() if oid in past)
        repo.history[found["name"]] = past[: past.index(oid) + 1]
        return {}

    def resolve(self, repo, found, body):
        oid = repo.resolve(found["rev"])
        data = repo.commits[oid].get(found["file"])
        if data is None:
            raise not_found("Entry")
        return data, {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": oid}


ID = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (rf"GET /api/models/{ID}(?:/revision/(?P<rev>.+))?", Hub.info),
    (rf"GET /api/models/{ID}/refs", Hub.refs),
    (rf"GET /api/models/{ID}/commits/(?P<rev>.+)", Hub.commits),
    (rf"GET /api/models/{ID}/tree/(?P<rev>[^/]+)/?", Hub.tree),
    (rf"POST /api/models/{ID}/preupload/(?P<rev>.+)", Hub.preupload),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", Hub.batch),
    (rf"POST /api/models/{ID}/commit/(?P<rev>.+)", Hub.commit),
    (rf"POST /api/models/{ID}/branch/(?P<name>.+)", Hub.branch),
    (rf"(?:GET|HEAD) /{ID}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", Hub.resolve),
]


def _body(request):
    if "chunked" not in (request.headers.get("Transfer-Encoding") or ""):
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    pieces = []
    while size := int(request.rfile.readline(), 16):
        pieces.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(pieces)


def _answer(request, status, content, headers=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
