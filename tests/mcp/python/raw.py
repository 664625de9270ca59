"""HTTP as it is told: takes `{"body": .., "headers": {..}}` a line, prints `{"status": .., "headers": {..}, "text": ..}`.

    python raw.py URL
"""

import http.client
import json
import sys
import urllib.parse

url = urllib.parse.urlsplit(sys.argv[1])
print('{"connected": null}', flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    connection = http.client.HTTPConnection(url.hostname, url.port)
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"} | asked["headers"]
    connection.request("POST", url.path, asked["body"].encode(), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    print(json.dumps({"status": answer.status, "headers": dict(answer.headers), "text": text}), flush=True)
