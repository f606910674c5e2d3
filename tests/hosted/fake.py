"""A hosted service on loopback that keeps books: what was created, what was asked, and what it bills.

It speaks HTTP to the real `openai` library. It counts tokens by its own byte-pair merging, from the bytes that arrive,
so its bill owes nothing to the package. `fault` makes the next request of a kind go wrong.
"""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import itertools
import json
import math
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEY = "sk-test-0123456789abcdef"
MERGES = ["th", "in", "er", "Th", "an", "on", "it", "em", "es", "se", "  ", "is", "ot", "ion", "item", "The", "ess"]
RANKS = {bytes([i]): i for i in range(256)} | {merge.encode(): 256 + i for i, merge in enumerate(MERGES)}
PATTERN = r"\w+|\s+|[^\w\s]+"


def count(text):
    """Tokens of a text: merge the pair of lowest rank until none is left, piece by piece."""
    total = 0
    for piece in re.findall(PATTERN, text):
        parts = [bytes([byte]) for byte in piece.encode("utf-8", "replace")]
        while True:
            pairs = [(RANKS[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in RANKS]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        total += len(parts)
    return total


def count_chat(messages):
    """Tokens of a chat: three a message, three for the answer."""
    return 3 + sum(3 + count(turn["role"]) + count(turn["content"]) for turn in messages)


class Fake(ThreadingHTTPServer):
    """The service. `jobs`, `batches`, `files`: what it holds. `bill`: tokens by (model, kind). `log`: what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.RLock()
        self.files, self.jobs, self.batches, self.log, self.faults = {}, [], [], [], []
        self.bill = Counter()
        self.course = ["validating_files", "queued", "running", "succeeded"]
        self.job_error = None
        self.why = "line 1 is no request"  # a batch has failed
        self.batch_course = ["validating", "in_progress", "completed"]
        self.unanswered = set()  # custom ids that a batch leaves out
        self.garbled = set()  # custom ids whose line of the output cannot be read
        self.stray = []  # lines that a batch's output has besides
        self.lag = 0  # how many listings do not show yet what is new
        self.answer = lambda body: ["an answer"] * (body.get("n") or 1)
        self.with_logprobs = False
        self.models = []  # cards
        self.complete = lambda body: None  # what a completion is answered with; None: there are none here
        self.released = threading.Event()  # lets requests go that hang
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def fault(self, method, path, action, *details, after=False):
        """Make the next `method path` go wrong: 'status' (code, message, headers, code name), 'detail'
        (code, words), 'hang', 'drop', 'text'.

        `after`: it is carried out before it goes wrong.
        """
        self.faults.append((method, path, action, details, after))

    def stop(self):
        self.released.set()
        self.shutdown()
        self.server_close()

    def posts(self, path):
        return self.log.count(("POST", path))

    # What the service does

    def upload(self, headers, body):
        message = email.message_from_bytes(
            b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        name = f"file-{len(self.files) + 1}"
        self.files[name] = parts["file"].get_payload(decode=True)
        return {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 1, "filename": "x",
                "purpose": parts["purpose"].get_payload(decode=True).decode(), "status": "processed"}  # fmt: skip

    def create_job(self, body):
        job = {
            "id": f"ftjob-{len(self.jobs) + 1}", "object": "fine_tuning.job", "created_at": 1000,
            "model": body["model"], "training_file": body["training_file"], "status": self.course[0],
            "metadata": body.get("metadata"),
            "fine_tuned_model": None, "finished_at": None, "trained_tokens": None, "result_files": [], "seed": 0,
            "organization_id": "org", "error": None, "hyperparameters": {}, "method": body["method"], "_seen": 0,
        }  # fmt: skip
        self.jobs.append(job)
        return job

    def move_job(self, job):
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        job["_seen"] += 1
        job["status"] = self.course[min(job["_seen"], len(self.course) - 1)]
        if job["status"] == "succeeded":
            epochs = job["method"]["supervised"]["hyperparameters"]["n_epochs"]
            rows = [json.loads(line) for line in self.files[job["training_file"]].splitlines()]
            tokens = epochs * sum(count_chat(row["messages"]) for row in rows)
            self.bill[job["model"], "training"] += tokens
            self.files["file-metrics"] = base64.b64encode(b"step,train_loss\n1,0.5\n")
            job |= {"fine_tuned_model": f"ft:{job['model']}:org::1", "trained_tokens": tokens, "finished_at": 1600,
                    "result_files": ["file-metrics"]}  # fmt: skip
        elif job["status"] == "failed":
            job["error"] = self.job_error
        return job

    def chat(self, body, share=1):
        texts = self.answer(body)
        usage = {"prompt_tokens": count_chat(body["messages"]), "completion_tokens": sum(map(count, texts))}
        usage["total_tokens"] = sum(usage.values())
        self.bill[body["model"], "input"] += share * usage["prompt_tokens"]
        self.bill[body["model"], "output"] += share * usage["completion_tokens"]
        choices = []
        for i, text in enumerate(texts):
            logprobs = None
            if self.with_logprobs and body.get("logprobs"):
                logprobs = {
                    "content": [{"token": text, "logprob": -float(len(text)), "bytes": None, "top_logprobs": []}]
                }
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": i, "message": message, "finish_reason": "stop", "logprobs": logprobs})
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": choices, "usage": usage}  # fmt: skip

    def embed(self, body):
        texts = body["input"]
        tokens = sum(map(count, texts))
        self.bill[body["model"], "input"] += tokens
        rows = []
        for i, text in enumerate(texts):
            vector = vector_of(text, body.get("dimensions") or 6)
            if body.get("encoding_format") == "base64":
                import numpy as np

                vector = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
            rows.append({"object": "embedding", "index": i, "embedding": vector})
        return {"object": "list", "data": rows[::-1], "model": body["model"],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}  # fmt: skip

    def create_batch(self, body):
        batch = {
            "id": f"batch_{len(self.batches) + 1}", "object": "batch", "created_at": 1000, "endpoint": body["endpoint"],
            "completion_window": "24h", "input_file_id": body["input_file_id"], "metadata": body.get("metadata"),
            "status": self.batch_course[0], "output_file_id": None, "error_file_id": None, "errors": None, "_seen": 0,
        }  # fmt: skip
        self.batches.append(batch)
        return batch

    def move_batch(self, batch):
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch
        batch["_seen"] += 1
        batch["status"] = self.batch_course[min(batch["_seen"], len(self.batch_course) - 1)]
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "invalid_file", "message": self.why}]}
        if batch["status"] in ("completed", "expired", "cancelled"):
            good, bad = [], []
            for line in self.files[batch["input_file_id"]].splitlines():
                row = json.loads(line)
                name = row["custom_id"]
                if name in self.unanswered:
                    why = {"code": "batch_expired", "message": "This request could not be executed in time."}
                    bad.append(json.dumps({"id": "r", "custom_id": name, "response": None, "error": why}))
                    continue
                body = self.chat(row["body"], share=1)
                whole = json.dumps({"id": "r", "custom_id": name, "error": None,
                                   "response": {"status_code": 200, "request_id": "q", "body": body}})  # fmt: skip
                good.append(whole[: len(whole) // 2] if name in self.garbled else whole)
            for kind, lines in (("output", good), ("error", bad)):
                if lines:
                    name = f"file-{batch['id']}-{kind}"
                    self.files[name] = "\n".join(lines[::-1] + self.stray).encode()  # in no order of ours
                    batch[f"{kind}_file_id"] = name
        return batch


def vector_of(text, dimensions):
    """A vector that tells texts apart."""
    digest = hashlib.sha256(text.encode()).digest()
    return [math.sin(digest[i % 32] + i) for i in range(dimensions)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.handle_one("GET")

    def do_POST(self):
        self.handle_one("POST")

    def handle_one(self, method):
        fake = self.server
        url = urlsplit(self.path)
        path, query = url.path.removeprefix("/v1"), parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        with fake.lock:
            fake.log.append((method, path))
            fault = next((f for f in fake.faults if f[0] == method and path.startswith(f[1])), None)
            if fault:
                fake.faults.remove(fault)
            sent = self.headers.get("authorization", "")
            if sent != f"Bearer {KEY}":
                return self.send(401, error(f"Incorrect API key provided: {sent.removeprefix('Bearer ')}."))
            if fault and not fault[4]:
                return self.go_wrong(*fault[2:4])
            answer = self.route(method, path, query, body)
        if fault:
            return self.go_wrong(*fault[2:4])
        return self.send(200, answer) if answer is not None else self.send(404, error(f"No such thing: {path}"))

    def go_wrong(self, action, details):
        if action == "hang":
            self.server.released.wait(20)
            self.close_connection = True
        elif action == "drop":
            self.close_connection = True
        elif action == "text":
            self.send(200, b"<html>a login page</html>", {"content-type": "text/html"})
        elif action == "detail":  # as FastAPI says it
            self.send(details[0], {"detail": details[1]})
        else:
            code, message, headers, name = [*details, *[None] * 4][:4]
            self.send(code, error(message, name), headers or {})

    def route(self, method, path, query, body):  # noqa: PLR0911
        fake = self.server
        parts = path.strip("/").split("/")
        if method == "POST" and path == "/files":
            return fake.upload(self.headers, body)
        if method == "GET" and parts[0] == "files" and parts[-1] == "content":
            return fake.files.get(parts[1])
        for head, held, create, move in (
            ("fine_tuning/jobs", fake.jobs, fake.create_job, fake.move_job),
            ("batches", fake.batches, fake.create_batch, fake.move_batch),
        ):
            if not path.strip("/").startswith(head):
                continue
            rest = path.strip("/").removeprefix(head).strip("/").split("/")
            if rest == [""] and method == "POST":
                return public(create(json.loads(body)))
            if rest == [""]:
                return self.page(held, query)
            found = next((one for one in held if one["id"] == rest[0]), None)
            if found is None:
                return None
            if rest[1:] == ["cancel"]:
                found["status"] = "cancelled"
            elif rest[1:] == ["events"]:
                return self.page(
                    [event(i, status) for i, status in enumerate(fake.course[: found["_seen"] + 1])], query
                )
            else:
                move(found)
            return public(found)
        if method == "GET" and path == "/models":
            return {"object": "list", "data": fake.models}
        asked = {"/completions": fake.complete, "/chat/completions": fake.chat, "/embeddings": fake.embed}
        return asked[path](json.loads(body)) if method == "POST" and path in asked else None

    def page(self, held, query):
        """Newest first, by pages of two, however many are asked for."""
        fake = self.server
        if fake.lag and held:
            fake.lag, held = fake.lag - 1, held[:-1]
        newest = held[::-1]
        if after := query.get("after"):
            newest = newest[[one["id"] for one in newest].index(after[0]) + 1 :]
        size = min(2, int(query.get("limit", ["2"])[0]))
        return {"object": "list", "data": [public(one) for one in newest[:size]], "has_more": len(newest) > size}

    def send(self, code, body, headers=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def event(i, status):
    return {"id": f"ftevent-{i}", "object": "fine_tuning.job.event", "created_at": 1000 + i, "level": "info",
            "message": f"the job is {status}", "type": "message"}  # fmt: skip


def public(one):
    return {name: value for name, value in one.items() if not name.startswith("_")}


def error(message, code=None):
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}
