"""A stand-in for a training script. It opens the paths that it is given and reads them to their ends: whether they are
files or pipes makes no difference to it, and it knows nothing of Standpipe. Each MiB takes STEP_MS of "training".
It prints when it had how many bytes, and at the end their digest."""

import hashlib
import sys
import time

step_s = float(sys.argv[1]) / 1000
digest = hashlib.sha256()
total = 0
buffer = bytearray(1 << 20)
due = None
for path in sys.argv[2:]:
    with open(path, "rb", buffering=0) as stream:
        while True:
            with memoryview(buffer) as view:
                count = stream.readinto(view)
                if not count:
                    break
                digest.update(view[:count])
            total += count
            now = time.time()
            print(f"{now:.6f} {total}", flush=True)
            # The step runs on an accelerator: it starts when its data is there and the step before is done.
            due = max(due or now, now) + step_s * count / (1 << 20)
            time.sleep(max(0.0, due - time.time()))
print(f"sha256 {digest.hexdigest()}")
