"""An engine that answers with the folder that it was started on and what it is asked; it leaves a child behind."""

ENGINE = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

folder, port = sys.argv[1], int(sys.argv[2])
if os.fork() == 0:
    time.sleep(1000)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send({"data": [{"id": "name of " + folder}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["model"] + ": " + asked["messages"][-1]["content"]
        self.send({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})

    def send(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
