"""The loop that answers: sent behind a program, whose ``do_…`` functions are what it can do.

Standard library only, Python 3.9 and later.
"""

import json
import sys


def serve() -> None:
    commands = {name[3:]: f for name, f in globals().items() if name.startswith("do_")}
    print(json.dumps({"ok": sorted(commands)}), flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            name = request.pop("do")
            answer = {"ok": commands[name](**request)}
        except Exception as error:  # told to the other side, which raises it there
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
