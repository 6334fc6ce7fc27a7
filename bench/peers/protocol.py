"""The peer's side of the conversation that README.md describes, for peers in Python."""

import json
import os
import sys
import time
import traceback

import numpy

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is no answer


class Contender:
    """One way to compute a problem. `rows` is how many of its rows it takes."""

    def __init__(self, name, rows, call, results, tolerance, restore=None):
        self.name, self.rows, self.call, self.results = name, rows, call, results
        self.tolerance, self.restore = tolerance, restore or (lambda: None)


def wall_and_cpu(call):
    """Milliseconds of one call, by the clocks of this process."""
    cpu, start = time.process_time(), time.perf_counter()
    call()
    return {"wall": (time.perf_counter() - start) * 1e3, "cpu": (time.process_time() - cpu) * 1e3}


def peak_extra_bytes(call):
    """Resident memory at the peak of a call beyond what there was before it; None where the system does not tell."""

    def resident(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        before = resident("VmRSS:")
        call()
        return max(0, resident("VmHWM:") - before)
    except OSError:
        return None


def serve(name, open_problem, sample=wall_and_cpu, memory=peak_extra_bytes):
    """`open_problem(problem)` returns contenders and reasons why others are left out."""
    contenders = {}

    def answer(request):
        if "open" in request:
            contenders.clear()
            found, left_out = open_problem(request["open"])
            for contender in found:
                try:
                    contender.restore()
                    contender.call()
                    contenders[contender.name] = contender
                except Exception as error:  # a dtype or a size that it cannot do
                    left_out.append(f"{contender.name}: {str(error).splitlines()[0]}")
            ready = [{"name": one.name, "rows": one.rows} for one in contenders.values()]
            return {"contenders": ready, "leftOut": left_out}
        contender = contenders[request.get("check") or request.get("sample") or request["memory"]]
        contender.restore()
        if "check" in request:
            files = {}
            for what, data in contender.results().items():
                files[what] = os.path.join(request["folder"], f"{what}.out")
                numpy.ascontiguousarray(data, dtype=numpy.float32).tofile(files[what])
            return {**files, "tolerance": contender.tolerance}
        if "sample" in request:
            return sample(contender.call)
        return {"peakExtraBytes": memory(contender.call)}

    print(json.dumps({"hello": name}), file=answers)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": str(error)}
        print(json.dumps(reply), file=answers)
